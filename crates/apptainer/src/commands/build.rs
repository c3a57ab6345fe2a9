//! `apptainer build`

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use isles_build::definition::{DefinitionOptions, Lender, Sections};
use isles_build::recipe::{self, Found, Language};
use isles_build::{BuildOptions, SifOptions, write_sif};
use isles_engine::image_file::{self, Form};
use isles_registry::{Client, ClientOptions};
use isles_sif::Sif;
use isles_spec::{FileSystemKind, Hint, Platform};
use isles_store::{EncryptedForm, Encryption, Image, Lease, SifSource, Store};

use crate::action_flags::{
    BIND, COMPAT32, IGNORE_FAKEROOT, IGNORE_SUBUID, IGNORE_USERNS, MOUNT, NVCCLI, OF_REGISTRY, PASSPHRASE,
    PEM_PATH, TMPDIR,
};
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::gpu;
use crate::image::{self, Named};
use crate::image_key;
use crate::{mksquashfs, mounts};
use crate::{reach, variables};

static SANDBOX: Flag =
    Flag::switch("sandbox", "make a folder instead of a file").short('s').env(&["SANDBOX"]);
static DATA: Flag = Flag::switch("data", "").env(&["DATA"]).hidden();
static SECTION: Flag = Flag::words(
    "section",
    "list",
    "only these sections count: setup, post, files, environment, test, labels, all or none",
)
.env(&["SECTION"]);
static JSON: Flag = Flag::switch("json", "the definition is JSON").env(&["JSON"]);
static UPDATE: Flag =
    Flag::switch("update", "run the definition over a folder that is there").short('u').env(&["UPDATE"]);
static NOTEST: Flag = Flag::switch("notest", "leave %test out").short('T').env(&["NOTEST"]);
static ARCH: Flag = Flag::text("arch", "name", "build for this architecture").env(&["BUILD_ARCH"]);
static ARCH_VARIANT: Flag =
    Flag::text("arch-variant", "name", "and this variant of it").env(&["BUILD_ARCH_VARIANT"]);
static LIBRARY: Flag = Flag::text("library", "url", "the library of `Bootstrap: library`").env(&["LIBRARY"]);
static DISABLE_CACHE: Flag = Flag::switch("disable-cache", "do every step again").env(&["DISABLE_CACHE"]);
static NO_CLEANUP: Flag =
    Flag::switch("no-cleanup", "accepted; what a failed build has made is kept in the cache")
        .env(&["NO_CLEANUP"]);
static FAKEROOT: Flag = Flag::switch("fakeroot", "accepted; builds are always as root of the container")
    .short('f')
    .env(&["FAKEROOT"]);
static ENCRYPT: Flag =
    Flag::switch("encrypt", "encrypt the root file system, with a passphrase or for an RSA key").short('e');
static FIX_PERMS: Flag =
    Flag::switch("fix-perms", "let the owner read, write and enter everything").env(&["FIXPERMS"]);
static MKSQUASHFS_ARGS: Flag =
    Flag::text("mksquashfs-args", "args", "how the file system is packed, in the words of mksquashfs")
        .env(&["MKSQUASHFS_ARGS"]);
static NV: Flag = Flag::switch("nv", "lend NVIDIA's libraries to %post and %test").env(&["NV"]);
static ROCM: Flag = Flag::switch("rocm", "lend ROCm's libraries to %post and %test").env(&["ROCM"]);
static WRITABLE_TMPFS: Flag =
    Flag::switch("writable-tmpfs", "accepted; %test may always write, and nothing of it is kept")
        .env(&["WRITABLE_TMPFS"]);
static USERNS: Flag = Flag::switch("userns", "accepted; there is no other way").env(&["USERNS"]);
static IGNORE_PROOT: Flag = Flag::switch("ignore-proot", "").env(&["IGNORE_PROOT"]).hidden();
static REMOTE: Flag = Flag::switch("remote", "").hidden();
static REPRODUCIBLE: Flag =
    Flag::switch("reproducible", "accepted; the same image gives the same file in any case")
        .env(&["REPRODUCIBLE"]);
static BUILD_ARG: Flag = Flag::words("build-arg", "NAME=VALUE", "a value for {{ NAME }}");
static BUILD_ARG_FILE: Flag = Flag::text("build-arg-file", "path", "a file with such values");
static WARN_UNUSED: Flag =
    Flag::switch("warn-unused-build-args", "warn of values that nothing uses, and go on");
static FORCE: Flag = Flag::switch("force", "replace what is there").short('F').env(&["FORCE"]);

static FLAGS: [&Flag; 36] = [
    &ARCH,
    &ARCH_VARIANT,
    &BIND,
    &BUILD_ARG,
    &BUILD_ARG_FILE,
    &COMPAT32,
    &DATA,
    &DISABLE_CACHE,
    &ENCRYPT,
    &FAKEROOT,
    &FIX_PERMS,
    &FORCE,
    &IGNORE_FAKEROOT,
    &IGNORE_PROOT,
    &IGNORE_SUBUID,
    &IGNORE_USERNS,
    &JSON,
    &LIBRARY,
    &MKSQUASHFS_ARGS,
    &MOUNT,
    &NOTEST,
    &NO_CLEANUP,
    &NV,
    &NVCCLI,
    &PASSPHRASE,
    &PEM_PATH,
    &REMOTE,
    &REPRODUCIBLE,
    &ROCM,
    &SANDBOX,
    &SECTION,
    &TMPDIR,
    &UPDATE,
    &USERNS,
    &WARN_UNUSED,
    &WRITABLE_TMPFS,
];

/// Flags that are refused, and what can be done instead.
const REFUSED: [(&Flag, &str); 3] = [
    (&DATA, "Apptainer has no such images; `apptainer sif add` puts a file system of data into a SIF file"),
    (&REMOTE, "build here, without it"),
    (&NVCCLI, "--nv finds the driver without nvidia-container-cli"),
];

pub static COMMAND: Command = Command {
    usage: "build [local options...] <IMAGE PATH> <BUILD SPEC>",
    short: "Build an Apptainer image",
    long: "The image is a SIF file, or a folder with --sandbox. It is made of a definition file, a Dockerfile, a folder\n\
           with a root file system, a SIF file, or one of docker://, oci:, oci-archive:, docker-archive:,\n\
           docker-daemon:, library://, oras://, http:// and https://. Steps that were done before are taken from the\n\
           cache of Isles.",
    examples: "apptainer build tool.sif tool.def\n\
               apptainer build --sandbox tree docker://debian:12\n\
               apptainer build --build-arg VERSION=2 tool.sif tool.def\n\
               apptainer build --encrypt --pem-path public.pem secret.sif tool.def",
    flags: &[&FLAGS, &OF_REGISTRY],
    arity: Arity::Exactly(2),
    run: build,
    ..Command::EMPTY
};

fn build(cx: &Context<'_>) -> Result<u8, Failure> {
    for (flag, instead) in REFUSED {
        if cx.values.has(flag) && cx.values.text(flag) != Some("false") {
            return Err(Failure::unsupported(format!("--{}", flag.name), instead));
        }
    }
    let (target, spec) = (Path::new(&cx.arguments[0]), &cx.arguments[1]);
    let mut options = options(cx)?;
    let (sandbox, update) = (cx.values.is(&SANDBOX), cx.values.is(&UPDATE));
    if update {
        check_update(target, sandbox, options.definition.force)?;
    } else {
        check_target(cx, target, sandbox, &mut options.definition)?;
    }
    if sandbox {
        let place = if update { &mut options.definition.update } else { &mut options.definition.sandbox };
        *place = Some(target.to_owned());
    }
    let encryption = encryption(cx, sandbox)?;
    let squashfs = mksquashfs::options(cx.values.word(&MKSQUASHFS_ARGS).unwrap_or_default())?;
    if cx.values.word(&TMPDIR).is_some() {
        cx.talk.verbose("What is unfinished lies in the store and beside the image, not in --tmpdir");
    }
    let engine = cx.engine()?;
    let (found, _held) = match Named::parse(spec) {
        Named::Uri("http" | "https", _) => {
            let (image, lease) = downloaded(cx, engine.store(), spec)?;
            (recipe_from("localimage", &image.id().to_string(), spec)?, Some(lease))
        }
        _ => (recipe_of(spec)?, None),
    };
    if update && found.language == Language::Dockerfile {
        return Err(Failure::unsupported(
            "--update with a Dockerfile",
            "write a definition file with the steps that are to be added",
        ));
    }
    let client = Client::new(ClientOptions { guarded: true, ..reach::options(cx)? });
    cx.talk.info("Starting build...");
    if update {
        let place = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
        cx.talk.info(&format!("Building into existing container: {}", place.display()));
    }
    let build = |found: &Found, options: &BuildOptions| {
        let built = isles_build::build(&engine, &client, found, options, &reach::Steps(cx.talk))
            .map_err(|e| failed(&e))?;
        for warning in &built.warnings {
            cx.talk.warning(&warning.to_string());
        }
        Ok::<_, Failure>(built)
    };
    let built = build(&found, &options)?;
    if sandbox && found.language == Language::Dockerfile {
        // A folder is made of the image, with all that Apptainer looks for in it. The image is held meanwhile.
        let of_image = recipe_from("localimage", &built.image.id().to_string(), spec)?;
        let only = BuildOptions { build_args: BTreeMap::new(), ..options.clone() };
        build(&of_image, &only)?;
    }
    if !sandbox {
        cx.talk.info("Creating SIF file...");
        let latest = super::epoch();
        let sif = SifOptions { latest, squashfs, encryption, ..SifOptions::default() };
        write_sif(engine.store(), &built.image, &sif, target).map_err(|e| failed(&e))?;
    }
    cx.talk.info(&format!("Build complete: {}", target.display()));
    Ok(0)
}

/// How the image is encrypted, where that is asked for: before anything is built, since it may fail. Root makes what root
/// opens everywhere, others what everybody opens, as Apptainer does.
fn encryption(cx: &Context<'_>, sandbox: bool) -> Result<Option<Encryption>, Failure> {
    let asked = cx.values.is(&ENCRYPT) || cx.values.is(&PASSPHRASE) || cx.values.word(&PEM_PATH).is_some();
    if !asked {
        if image_key::is_in_variables() {
            cx.talk.warning(
                "Encryption related env vars found, but --encrypt was not specified. NOT encrypting container.",
            );
        }
        return Ok(None);
    }
    if sandbox {
        return Err(Failure::unsupported(
            "--encrypt with --sandbox",
            "a folder is not encrypted; make a file",
        ));
    }
    let root = rustix::process::geteuid().is_root();
    let form = if root { EncryptedForm::Luks } else { EncryptedForm::Gocryptfs };
    Ok(Some(Encryption { form, secret: image_key::new_secret(cx)? }))
}

/// A failed build, with the line of the recipe that it is about.
fn failed(error: &isles_build::Error) -> Failure {
    let mut failure = Failure::because(format!("While performing build: {error}"), error);
    if let Some(picture) = error.picture() {
        failure.message.extend(picture.lines().map(|line| format!("\n  {line}")));
    }
    failure.hint = error.hint();
    failure
}

/// A folder that an update changes.
fn check_update(target: &Path, sandbox: bool, force: bool) -> Result<(), Failure> {
    let checking = |text: String| Err(Failure::new(format!("While checking build target: {text}")));
    let place = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
    let shown = place.display();
    if !sandbox {
        return checking("only sandbox update is supported: --sandbox flag is missing".to_owned());
    }
    match fs::metadata(target) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            checking(format!("could not update sandbox {shown}: doesn't exist"))
        }
        Err(e) => Err(Failure::because(format!("While checking build target: {shown}"), &e)),
        Ok(found) if !found.is_dir() => {
            checking(format!("only sandbox update is supported: {shown} is not a directory"))
        }
        Ok(_) if !force && !is_sandbox(target) => checking(not_a_sandbox(&place)),
        Ok(_) => Ok(()),
    }
}

fn not_a_sandbox(folder: &Path) -> String {
    format!(
        "{} is not empty and is not an Apptainer sandbox, check its content first and use --force if you want to overwrite it",
        folder.display()
    )
}

/// Fetches an image into the store: a file of SIF or squashfs that a URL names.
fn downloaded(cx: &Context<'_>, store: &Store, url: &str) -> Result<(Image, Lease), Failure> {
    cx.talk.info(&format!("Downloading {url}"));
    fetched_image(cx, store, url, |file| reach::download(cx, url, file))
}

/// Makes a folder of an image of the store, in the place of one that is there.
pub fn sandbox_of(
    cx: &Context<'_>,
    engine: &isles_engine::Engine,
    image: &Image,
    spec: &str,
    target: &Path,
) -> Result<(), Failure> {
    let found = recipe_from("localimage", &image.id().to_string(), spec)?;
    let mut options = BuildOptions::default();
    options.definition.sandbox = Some(target.to_owned());
    options.definition.force = true;
    let client = Client::new(ClientOptions { guarded: true, ..reach::options(cx)? });
    let steps = reach::Steps(cx.talk);
    isles_build::build(engine, &client, &found, &options, &steps).map_err(|e| failed(&e)).map(drop)
}

/// An image file that `fetch` writes, as an image of the store.
pub fn fetched_image(
    cx: &Context<'_>,
    store: &Store,
    url: &str,
    fetch: impl FnOnce(&mut File) -> Result<(), Failure>,
) -> Result<(Image, Lease), Failure> {
    let scratch = Scratch(store.scratch_dir()?);
    let path = scratch.0.join("image");
    let file = File::options().read(true).write(true).create_new(true).open(&path);
    let failed = |e: io::Error| Failure::because(format!("cannot keep what '{url}' holds"), &e);
    let mut file = file.map_err(failed)?;
    fetch(&mut file)?;
    let (lease, steps) = (store.lease()?, reach::Steps(cx.talk));
    let image = match image_file::form(&file).map_err(failed)? {
        Some(Form::Sif) => {
            let sif = Sif::from_file(file, url)
                .map_err(|e| Failure::because(format!("'{url}' is no image"), &e))?;
            store.import_sif(&lease, SifSource::Sif(&sif), &[], &steps)?
        }
        Some(Form::Bare(FileSystemKind::Squashfs)) => {
            store.import_sif(&lease, SifSource::Squashfs(&file, url), &[], &steps)?
        }
        Some(Form::Bare(FileSystemKind::Ext)) => {
            store.import_sif(&lease, SifSource::Ext(&file, url), &[], &steps)?
        }
        _ => {
            return Err(Failure::new(format!("'{url}' is no image")).with_hint(
                "a URL names a file of SIF, squashfs or ext3; fetch a recipe, read it, and build it by its path",
            ));
        }
    };
    Ok((image, lease))
}

/// A folder of the store that goes with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays is collected with the rest of the store.
        let _ = isles_store::remove_tree(&self.0);
    }
}

/// What is there already is replaced where the caller says so, by flag or when asked.
fn check_target(
    cx: &Context<'_>,
    target: &Path,
    sandbox: bool,
    options: &mut DefinitionOptions,
) -> Result<(), Failure> {
    let Ok(there) = fs::symlink_metadata(target) else { return Ok(()) };
    let name = target.file_name().unwrap_or(target.as_os_str()).display();
    let checking = |text: String| Failure::new(format!("While checking build target: {text}"));
    if there.is_dir() && !options.force && !is_sandbox(target) {
        let place = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
        return Err(checking(not_a_sandbox(&place)));
    }
    if !options.force {
        if !io::stdin().is_terminal() {
            return Err(checking(format!(
                "build target '{name}' already exists. Use --force if you want to overwrite it"
            )));
        }
        let question = if there.is_dir() || image::on_disk(target).is_ok() {
            format!(
                "Build target '{name}' already exists and will be deleted during the build process. Do you want to continue? [y/N] "
            )
        } else {
            format!(
                "Build target '{name}' may be a definition file or a text/binary file that will be overwritten. Do you still want to overwrite it? [y/N] "
            )
        };
        let _ = io::stderr().write_all(question.as_bytes());
        let mut answer = String::new();
        let _ = io::stdin().lock().read_line(&mut answer);
        if !matches!(answer.trim(), "y" | "Y") {
            return Err(checking("stopping build".to_owned()));
        }
        options.force = true;
    }
    if there.is_dir() && !sandbox {
        return isles_store::remove_tree(target)
            .map_err(|e| Failure::because(format!("cannot replace '{}'", target.display()), &e));
    }
    if !there.is_dir() && sandbox {
        return fs::remove_file(target)
            .map_err(|e| Failure::because(format!("cannot replace '{}'", target.display()), &e));
    }
    cx.talk.debug(&format!("{name} is replaced"));
    Ok(())
}

/// Empty, or with what every image of Apptainer's has.
pub fn is_sandbox(folder: &Path) -> bool {
    let empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    empty || [".singularity.d", "dev", "proc", "sys"].iter().all(|name| folder.join(name).exists())
}

/// What is built: a recipe in a file, or one that stands for an image.
fn recipe_of(spec: &str) -> Result<Found, Failure> {
    let (agent, from) = match Named::parse(spec) {
        Named::Instance(_) => {
            return Err(Failure::unsupported(
                "building from an instance",
                "build from the image that it runs",
            ));
        }
        Named::Uri("shub", _) => {
            return Err(Failure::unsupported(
                "shub://",
                "Singularity Hub was switched off in 2021; use docker://",
            ));
        }
        Named::Uri("ipfs", _) => {
            return Err(Failure::unsupported(
                format!("building from {spec}"),
                "fetch the file by other means, and build from it",
            ));
        }
        Named::Uri(agent, rest) => (agent.to_owned(), rest.to_owned()),
        Named::Path(path) => {
            let there = fs::metadata(path).map_err(|e| {
                Failure::because(format!("Unable to build from {spec}: unable to open file {spec}"), &e)
            })?;
            let is_image =
                there.is_dir() && !recipe::is_recipe(path) || image::on_disk(path).is_ok() && !there.is_dir();
            if !is_image {
                return recipe::find(path).map_err(|e| failed(&e));
            }
            ("localimage".to_owned(), path.display().to_string())
        }
    };
    recipe_from(&agent, &from, spec)
}

/// A recipe that is nothing but an image; `spec` is what the caller called it.
fn recipe_from(agent: &str, from: &str, spec: &str) -> Result<Found, Failure> {
    if from.contains(['\n', '#']) {
        return Err(Failure::new(format!("'{from}' cannot stand in a definition file")));
    }
    let text = format!("bootstrap: {agent}\nfrom: {from}\n\n").into_bytes();
    let here = PathBuf::from(".");
    let (file, language) = (spec.into(), Language::Definition);
    Ok(Found { file, text: Some(text), language, context: here, fetched: false, made: None })
}

fn options(cx: &Context<'_>) -> Result<BuildOptions, Failure> {
    let values = cx.values;
    let mut build_args = BTreeMap::new();
    for pair in values.list(&BUILD_ARG) {
        let (name, value) = pair.split_once('=').ok_or_else(|| {
            Failure::new(format!("while processing the build arg: '{pair}' is not NAME=VALUE"))
        })?;
        build_args.insert(name.to_owned(), value.to_owned());
    }
    let sections = match values.list(&SECTION) {
        [] => Sections::All,
        list => list.join(",").parse()?,
    };
    let mut mounts = Vec::new();
    for bind in mounts::all_binds(values, std::env::current_dir().ok().as_deref())? {
        mounts.push(mounts::of_bind(&bind)?);
    }
    let definition = DefinitionOptions {
        argument_file: values.word(&BUILD_ARG_FILE).map(PathBuf::from),
        unused_arguments_warn: values.is(&WARN_UNUSED),
        sections,
        json: values.is(&JSON),
        force: values.is(&FORCE),
        fix_permissions: values.is(&FIX_PERMS),
        // Root has asked by being root, as with Apptainer. This is before the engine may have made root of anybody.
        host_scripts: rustix::process::geteuid().is_root(),
        mounts,
        lender: lender(cx),
        opener: Some(image_key::opener(cx)?),
        library: values.word(&LIBRARY).map(str::to_owned),
        library_token: variables::look("LIBRARY_TOKEN"),
        ..DefinitionOptions::default()
    };
    let platform = values.word(&ARCH).map(|arch| Platform::new("linux", arch, values.word(&ARCH_VARIANT)));
    Ok(BuildOptions {
        build_args,
        no_cache: values.is(&DISABLE_CACHE),
        platforms: platform.into_iter().collect(),
        no_test: values.is(&NOTEST),
        definition,
        ..BuildOptions::default()
    })
}

/// The drivers that are asked for, as far as the image can use them.
fn lender(cx: &Context<'_>) -> Option<Lender> {
    let drivers = [(&NV, gpu::NVIDIA), (&ROCM, gpu::ROCM)];
    let wanted = drivers.into_iter().filter(|(flag, _)| cx.values.is(flag));
    let wanted: Vec<gpu::Driver> = wanted.map(|(_, driver)| driver).collect();
    if wanted.is_empty() {
        return None;
    }
    let (talk, narrow) = (cx.talk, cx.values.is(&COMPAT32));
    let path = std::env::var("PATH").unwrap_or_default();
    let said = Mutex::new(BTreeSet::new());
    Some(Lender::new(move |read| {
        let host = gpu::Host { root: Path::new("/"), path: &path };
        let glibc = gpu::glibc_of(read);
        let mut mounts = Vec::new();
        for driver in &wanted {
            let lent = driver.lend(host, glibc, narrow, true);
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            // Each once, however many sections there are.
            for warning in lent.warnings.into_iter().filter(|warning| said.insert(warning.clone())) {
                talk.warning(&warning);
            }
            mounts.extend(lent.mounts);
        }
        mounts
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_stand_for_recipes() {
        let dir = tempfile::tempdir().unwrap();
        let text = |spec: &str| {
            let found = recipe_of(spec).map_err(|f| f.message)?;
            Ok::<_, String>(String::from_utf8(found.read().unwrap()).unwrap())
        };
        let folder = dir.path().canonicalize().unwrap().display().to_string();
        assert_eq!(text("docker://debian:12").unwrap(), "bootstrap: docker\nfrom: debian:12\n\n");
        assert_eq!(text("oci-archive:/a.tar:x").unwrap(), "bootstrap: oci-archive\nfrom: /a.tar:x\n\n");
        assert_eq!(text(&folder).unwrap(), format!("bootstrap: localimage\nfrom: {folder}\n\n"));
        let recipe = dir.path().join("tool");
        fs::write(&recipe, "Bootstrap: scratch\n").unwrap();
        assert_eq!(text(recipe.to_str().unwrap()).unwrap(), "Bootstrap: scratch\n");
        for (bad, word) in [
            ("/nonexistent/x.def", "unable to open file"),
            ("shub://x", "shub"),
            ("instance://x", "instance"),
            ("docker://a\nb", "definition"),
        ] {
            assert!(text(bad).unwrap_err().contains(word), "{bad}");
        }
    }

    #[test]
    fn what_can_be_updated() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (dir.path().join("folder"), dir.path().join("file"));
        fs::create_dir(&folder).unwrap();
        fs::write(&file, "").unwrap();
        let said =
            |target: &Path, sandbox, force| check_update(target, sandbox, force).map_err(|f| f.message);
        said(&folder, true, false).unwrap();
        fs::write(folder.join("x"), "").unwrap();
        said(&folder, true, true).unwrap();
        for (target, sandbox, word) in [
            (&folder, false, "--sandbox flag is missing"),
            (&folder, true, "is not an Apptainer sandbox"),
            (&file, true, "file is not a directory"),
            (&dir.path().join("none"), true, "none: doesn't exist"),
        ] {
            let text = said(target, sandbox, false).unwrap_err();
            assert!(text.starts_with("While checking build target: ") && text.contains(word), "{text}");
        }
    }
}

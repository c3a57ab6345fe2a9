//! `apptainer build`

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};

use isles_build::definition::{DefinitionOptions, Origin, Sections};
use isles_build::recipe::{self, Found, Language};
use isles_build::{BuildOptions, SifOptions, write_sif};
use isles_spec::{Hint, Platform};
use isles_squashfs::Compression;

use crate::action_flags::{
    BIND, COMPAT32, IGNORE_FAKEROOT, IGNORE_SUBUID, IGNORE_USERNS, MOUNT, NVCCLI, OF_REGISTRY, PASSPHRASE,
    PEM_PATH, TMPDIR, WRITABLE_TMPFS,
};
use crate::command::{Arity, Command, Context};
use crate::failure::Failure;
use crate::flag::Flag;
use crate::gpu;
use crate::image::{self, Named};
use crate::mounts;
use crate::{reach, variables};

static SANDBOX: Flag =
    Flag::switch("sandbox", "make a folder instead of a file").short('s').env(&["SANDBOX"]);
static DATA: Flag = Flag::switch("data", "a partition of data, which is refused").env(&["DATA"]);
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
static ENCRYPT: Flag = Flag::switch("encrypt", "encrypted images, which are refused").short('e');
static FIX_PERMS: Flag =
    Flag::switch("fix-perms", "let the owner read, write and enter everything").env(&["FIXPERMS"]);
static MKSQUASHFS_ARGS: Flag =
    Flag::text("mksquashfs-args", "args", "-comp NAME and -processors N of mksquashfs")
        .env(&["MKSQUASHFS_ARGS"]);
static NV: Flag = Flag::switch("nv", "lend NVIDIA's libraries to %post and %test");
static ROCM: Flag = Flag::switch("rocm", "lend ROCm's libraries to %post and %test");
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
const REFUSED: [(&Flag, &str); 6] = [
    (&ENCRYPT, "images cannot be encrypted; keep the file where only you can read it"),
    (&PASSPHRASE, "images cannot be encrypted; keep the file where only you can read it"),
    (&PEM_PATH, "images cannot be encrypted; keep the file where only you can read it"),
    (&DATA, "`apptainer sif add` puts a file system of data into a SIF file"),
    (&REMOTE, "build here, without it"),
    (&NVCCLI, "--nv finds the driver without nvidia-container-cli"),
];

pub static COMMAND: Command = Command {
    usage: "build [local options...] <IMAGE PATH> <BUILD SPEC>",
    short: "Build an Apptainer image",
    long: "The image is a SIF file, or a folder with --sandbox. It is made of a definition file, a Dockerfile, a folder\n\
           with a root file system, a SIF file, or one of docker://, oci:, oci-archive:, docker-archive:,\n\
           docker-daemon:, library:// and oras://. Steps that were done before are taken from the cache of Isles.",
    examples: "apptainer build tool.sif tool.def\n\
               apptainer build --sandbox tree docker://debian:12\n\
               apptainer build --build-arg VERSION=2 tool.sif tool.def",
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
    if update && !sandbox {
        return Err(Failure::new(
            "While checking build target: only sandbox update is supported: --sandbox flag is missing",
        ));
    }
    if !update {
        check_target(cx, target, sandbox, &mut options.definition)?;
    }
    if sandbox {
        let place = if update { &mut options.definition.update } else { &mut options.definition.sandbox };
        *place = Some(target.to_owned());
    }
    let compression = compression(cx.values.word(&MKSQUASHFS_ARGS).unwrap_or_default())?;
    let found = recipe_of(spec)?;
    if sandbox && found.language == Language::Dockerfile {
        return Err(Failure::unsupported(
            "a folder from a Dockerfile",
            "build a SIF file of it, and a folder of that",
        ));
    }
    let engine = cx.engine()?;
    let client = reach::client(cx)?;
    cx.talk.info("Starting build...");
    let built = isles_build::build(&engine, &client, &found, &options, &reach::Steps(cx.talk))
        .map_err(|e| failed(&e))?;
    for warning in &built.warnings {
        cx.talk.warning(&warning.to_string());
    }
    if !sandbox {
        cx.talk.info("Creating SIF file...");
        let latest = super::epoch();
        let sif = SifOptions { origin: Origin::default(), latest, ..compression };
        write_sif(engine.store(), &built.image, &sif, target).map_err(|e| failed(&e))?;
    }
    cx.talk.info(&format!("Build complete: {}", target.display()));
    Ok(0)
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
        return Err(checking(format!(
            "{} is not empty and is not an Apptainer sandbox, check its content first and use --force if you want to overwrite it",
            target.display()
        )));
    }
    if !options.force {
        if !io::stdin().is_terminal() {
            return Err(checking(format!(
                "build target '{name}' already exists. Use --force if you want to overwrite it"
            )));
        }
        let question = format!(
            "Build target '{name}' already exists and will be deleted during the build process. Do you want to continue? [y/N] "
        );
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
fn is_sandbox(folder: &Path) -> bool {
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
        Named::Uri("http" | "https" | "ipfs", _) => {
            return Err(Failure::unsupported(
                format!("building from {spec}"),
                "pull the file first, and build from it",
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
    let path = std::env::var("PATH").unwrap_or_default();
    let host = gpu::Host { root: Path::new("/"), path: &path };
    for (flag, driver) in [(&NV, gpu::NVIDIA), (&ROCM, gpu::ROCM)] {
        if values.is(flag) {
            let lent = driver.lend(host, None, values.is(&COMPAT32), true);
            lent.warnings.iter().for_each(|warning| cx.talk.warning(warning));
            mounts.extend(lent.mounts);
        }
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

/// `-comp NAME` and `-processors N`, as mksquashfs has them; other words are refused by name.
fn compression(args: &str) -> Result<SifOptions, Failure> {
    let mut out = SifOptions::default();
    let mut words = args.split_whitespace();
    while let Some(word) = words.next() {
        let refused = |what: &str| {
            Failure::unsupported(
                format!("--mksquashfs-args {what}"),
                "-comp gzip, -comp zstd and -processors N are known",
            )
        };
        match (word, words.next()) {
            ("-comp", Some(name)) => {
                out.compression = match name {
                    "gzip" => Compression::Gzip(9),
                    "zstd" => Compression::default(),
                    _ => return Err(refused(&format!("{word} {name}"))),
                };
            }
            ("-processors", Some(n)) => {
                out.threads = n.parse().map_err(|_| refused(&format!("{word} {n}")))?;
            }
            _ => return Err(refused(word)),
        }
    }
    Ok(out)
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
    fn arguments_of_mksquashfs() {
        assert_eq!(compression("-processors 2 -comp gzip").unwrap().threads, 2);
        for bad in ["-comp", "-comp moon", "-no-fragments", "-processors x"] {
            assert!(compression(bad).is_err(), "{bad}");
        }
    }
}

//! Agents that fill an empty root with a distribution's own program: `yum`, `dnf`, `zypper`, `arch`; and `busybox`,
//! which is one file.
//!
//! The program is the host's, or that of an image that the caller names (`--tools-image`). The host's runs with the host read-only and the root writable ([`super::host`]); what it keeps
//! for itself, caches and configuration, goes into the root and is removed at the end. As with a RUN that installs
//! packages, the result is kept by what was asked for, not by what the mirror had.

use std::path::Path;

use isles_registry::web::{Web, Wish};
use isles_spec::Platform;
use isles_store::{FileKind, Merged};

use super::host::{HostScript, ROOTFS};
use super::scripts::quoted;
use super::syntax::Stage;
use super::tree::{Entry, write};
use crate::dockerfile::execute::place;
use crate::error::{Error, Result};
use crate::images;
use crate::position::{Diagnostic, SourceText, Spanned};
use crate::run::RunStep;
use crate::snapshot::{Build, Scratch, Snapshot, Step, commit};
use crate::upper::{Access, Upper};

/// A busybox has some 2 MB.
const BUSYBOX_LIMIT: u64 = 64 << 20;
/// The variable that names an image with the programs.
const TOOLS_IMAGE: &str = "ISLES_TOOLS_IMAGE";
const PACMAN_LIMIT: u64 = 1 << 20;
const TEMPLATE: &str = "%{OSVERSION}";

/// What is done for an agent.
struct Plan {
    /// Programs of the host that have to be there; of several in one entry, the first that is.
    programs: Vec<Vec<&'static str>>,
    script: Box<Script>,
    /// What else to do where a program is missing.
    instead: &'static str,
}

/// A script, by the programs that were found.
type Script = dyn Fn(&[&str]) -> String;

/// Whether an agent is one of these.
pub fn is_agent(name: &str) -> bool {
    matches!(name, "yum" | "dnf" | "zypper" | "arch" | "busybox")
}

/// Makes the root of one of the agents.
pub fn bootstrap(build: &Build<'_>, source: &SourceText, stage: &Stage, agent: &Spanned) -> Result<Snapshot> {
    let name = agent.to_ascii_lowercase();
    if name == "busybox" {
        return busybox(build, source, stage, agent);
    }
    let plan = match name.as_str() {
        "zypper" => zypper(source, stage, agent)?,
        "arch" => arch(build, source, stage)?,
        _ => {
            let key = std::env::var("GPG").ok().filter(|key| !key.is_empty());
            yum(source, stage, agent, key.as_deref())?
        }
    };
    let named = build.options.definition.tools_image.clone();
    let named = named.or_else(|| std::env::var(TOOLS_IMAGE).ok()).filter(|name| !name.is_empty());
    let tools = match &named {
        Some(image) => {
            let tools =
                images::named(build, image, &Platform::host()).map_err(|e| place(source, agent.span, e))?;
            Some(Snapshot::of_image(&tools))
        }
        None => None,
    };
    let view = tools.as_ref().map(|tools| tools.view(build.store)).transpose()?;
    let has = |program: &str| view.as_ref().map_or_else(|| on_host(program), |view| in_image(view, program));
    let mut found = Vec::new();
    for choice in &plan.programs {
        let program = choice.iter().find(|program| has(program)).ok_or_else(|| {
            let names = choice.join("' or '");
            let (place, cure) = match &named {
                Some(image) => (format!("in the image '{image}'"), "name another image".to_owned()),
                None => {
                    let cure = "install it, name an image that has it with --tools-image".to_owned();
                    ("on this machine".to_owned(), cure)
                }
            };
            source
                .at(agent.span, format!("Bootstrap: {name} needs '{names}', which is not {place}"))
                .with_suggestion(format!("{cure}, or {}", plan.instead))
        })?;
        found.push(*program);
    }
    if build.platform.architecture != Platform::host().architecture {
        let message = format!("Bootstrap: {name} makes images for the host's architecture only");
        return Err(source.at(agent.span, message).with_suggestion(plan.instead).into());
    }
    let text = (plan.script)(&found);
    let mut snapshot = images::scratch(&build.platform);
    let mut key = snapshot.key("distribution", build).with("script", &text);
    if let Some(tools) = &tools {
        key = key.with("tools", tools.key("tools", build).finish().to_string());
    }
    let key = key.finish();
    let title = format!("Bootstrap: {name}");
    let step = Step { title: &title, key, shortcut: None, created_by: title.clone() };
    let script = HostScript {
        command: &title,
        place: format!("{}:{}", source.name(), source.line_of(agent.span.start)),
        interpreter: vec!["/bin/sh".into(), "-e".into()],
        text: &text,
        env: Vec::new(),
        tools: tools.as_ref(),
        folder: Path::new("/"),
        network: build.options.network.clone(),
        clamp: None,
    };
    build
        .add(&mut snapshot, step, |snapshot, work| script.run(build, snapshot, work))
        .map_err(|e| place(source, agent.span, e))?;
    if name == "arch" {
        keys_of_arch(build, source, agent, &mut snapshot)?;
    }
    Ok(snapshot)
}

/// Without its keys the system that was just installed would trust no package.
fn keys_of_arch(
    build: &Build<'_>,
    source: &SourceText,
    agent: &Spanned,
    snapshot: &mut Snapshot,
) -> Result<()> {
    const KEYS: &str = "if command -v pacman-key >/dev/null; then\n\
                        pacman-key --init && pacman-key --populate archlinux\nfi";
    let program = RunStep {
        argv: ["/bin/sh", "-ec", KEYS].map(str::to_owned).to_vec(),
        env: snapshot.config.config.env.clone(),
        working_dir: "/".into(),
        network: build.options.network.clone(),
        place: format!("{}:{}", source.name(), source.line_of(agent.span.start)),
        command: "pacman-key".into(),
        ..RunStep::default()
    };
    let key = program.key(build, snapshot)?;
    let step = Step { title: "pacman-key", key, shortcut: None, created_by: "pacman-key".into() };
    build
        .add(snapshot, step, |snapshot, work| program.run(build, snapshot, work))
        .map_err(|e| place(source, agent.span, e))
}

fn on_host(program: &str) -> bool {
    use std::os::unix::fs::PermissionsExt;
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
    std::env::split_paths(&path).any(|folder| {
        std::fs::metadata(folder.join(program))
            .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    })
}

/// Whether an image has a program where programs usually are.
fn in_image(view: &Merged, program: &str) -> bool {
    ["usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin"].iter().any(|folder| {
        view.stat(&Path::new(folder).join(program)).is_ok_and(|stat| stat.kind == FileKind::File)
    })
}

fn needs(source: &SourceText, agent: &Spanned, key: &str, example: &str) -> Diagnostic {
    source
        .at(agent.span, format!("Bootstrap: {} needs {key}", agent.text))
        .with_suggestion(format!("write {key}: {example}"))
}

/// A field with `%{OSVERSION}` replaced, in whatever case.
fn field(source: &SourceText, stage: &Stage, agent: &Spanned, key: &str) -> Result<Option<String>> {
    let Some(field) = stage.field(key) else { return Ok(None) };
    let mut out = field.text.clone();
    while let Some(at) = out.to_ascii_uppercase().find(TEMPLATE) {
        let version = stage.field("osversion").ok_or_else(|| needs(source, agent, "OSVersion", "9"))?;
        if version.to_ascii_uppercase().contains(TEMPLATE) {
            return Err(source.at(version.span, "the version cannot be made of itself").into());
        }
        out.replace_range(at..at + TEMPLATE.len(), version);
    }
    Ok(Some(out))
}

/// The packages that a system begins with, and those of the recipe, each as the shell takes it.
fn packages(stage: &Stage, first: &str) -> String {
    let own = stage.field("include").map(|f| f.text.clone()).unwrap_or_default();
    let all = format!("{first} {own}");
    let words = all.split(|c: char| c.is_whitespace() || c == ',').filter(|w| !w.is_empty());
    words.map(quoted).collect::<Vec<_>>().join(" ")
}

/// A here-document that writes `text` to a file.
fn file(path: &str, text: &str) -> String {
    format!("printf '%s\\n' {} > {path}\n", quoted(text.trim_end()))
}

fn yum(source: &SourceText, stage: &Stage, agent: &Spanned, key: Option<&str>) -> Result<Plan> {
    let mirror = field(source, stage, agent, "mirrorurl")?.ok_or_else(|| {
        needs(source, agent, "MirrorURL", "http://MIRROR/%{OSVERSION}/BaseOS/$basearch/os/")
    })?;
    // As Apptainer has it, packages are checked where the caller names a key.
    if let Some(key) = key.filter(|key| !key.starts_with("https://")) {
        return Err(source
            .at(agent.span, format!("GPG={key} is not fetched safely"))
            .with_suggestion("name a key with https://, or unset the variable GPG")
            .into());
    }
    let check = i32::from(key.is_some());
    let mut config = format!(
        "[main]\ncachedir={ROOTFS}/var/cache/bootstrap\nkeepcache=0\ndebuglevel=2\nobsoletes=1\ngpgcheck={check}\n\
         plugins=0\nreposdir=/nonexistent\nmetadata_expire=0\n\n\
         [base]\nname=base\nbaseurl={mirror}\nenabled=1\ngpgcheck={check}\n"
    );
    if let Some(update) = field(source, stage, agent, "updateurl")? {
        config
            .push_str(&format!("\n[updates]\nname=updates\nbaseurl={update}\nenabled=1\ngpgcheck={check}\n"));
    }
    let version =
        stage.field("osversion").map(|f| format!(" --releasever={}", quoted(f))).unwrap_or_default();
    let options = stage.field("setopt").map(|f| f.text.clone()).unwrap_or_default();
    let options: String = options.lines().map(|o| format!(" --setopt={}", quoted(o.trim()))).collect();
    let include = packages(stage, "/etc/redhat-release coreutils");
    let choices = if agent.eq_ignore_ascii_case("dnf") { vec!["dnf", "yum"] } else { vec!["yum", "dnf"] };
    let import = match key {
        Some(key) => format!("rpm --root {ROOTFS} --initdb\nrpm --root {ROOTFS} --import {}\n", quoted(key)),
        None => String::new(),
    };
    let script = move |found: &[&str]| {
        let program = found.first().copied().unwrap_or("dnf");
        format!(
            "mkdir -p {ROOTFS}/etc {ROOTFS}/var/lib/rpm {ROOTFS}/var/cache/bootstrap\n{}{import}\
             {program} --noplugins -c {ROOTFS}/etc/bootstrap.conf --installroot={ROOTFS}{version}{options} -y \
             install {include}\n\
             rm -rf {ROOTFS}/etc/bootstrap.conf {ROOTFS}/var/cache/bootstrap\n",
            file(&format!("{ROOTFS}/etc/bootstrap.conf"), &config)
        )
    };
    let mut programs = vec![choices, vec!["rpm"]];
    if key.is_some() {
        programs.push(vec!["curl"]);
    }
    let instead = "use Bootstrap: docker and From: rockylinux or fedora";
    Ok(Plan { programs, script: Box::new(script), instead })
}

fn zypper(source: &SourceText, stage: &Stage, agent: &Spanned) -> Result<Plan> {
    let at_root = format!("zypper --root {ROOTFS} --gpg-auto-import-keys --non-interactive");
    let mut lines = format!("mkdir -p {ROOTFS}/etc/zypp\n");
    let mut programs = vec![vec!["zypper"], vec!["rpm"]];
    let mut first = "aaa_base";
    // A product of SUSE's, which is registered.
    let is_product = ["product", "user", "regcode"].iter().any(|key| stage.field(key).is_some());
    let mirror = field(source, stage, agent, "mirrorurl")?;
    if mirror.is_none() && !is_product {
        let example = "http://MIRROR/distribution/leap/%{OSVERSION}/repo/oss/";
        return Err(needs(source, agent, "MirrorURL", example).into());
    }
    if let Some(mirror) = &mirror {
        lines.push_str(&format!("{at_root} addrepo {} repo\n{at_root} refresh\n", quoted(mirror)));
    }
    if let Some(update) = field(source, stage, agent, "updateurl")? {
        lines.push_str(&format!(
            "{at_root} addrepo -f {} update\n{at_root} refresh -r update\n",
            quoted(&update)
        ));
    }
    if let Some(key) = stage.field("productpgp") {
        programs.push(vec!["rpmkeys"]);
        lines.push_str(&file("/dev/shm/product.pgp", key));
        lines.push_str(&format!("rpmkeys --root {ROOTFS} --import /dev/shm/product.pgp\n"));
    } else if is_product && mirror.is_none() {
        return Err(needs(source, agent, "ProductPGP or MirrorURL", "…").into());
    }
    if is_product {
        let need = |key: &'static str, example: &str| {
            let value = field(source, stage, agent, &key.to_ascii_lowercase())?;
            value.ok_or_else(|| Error::from(needs(source, agent, key, example)))
        };
        let product = need("Product", "SLES/%{OSVERSION}")?;
        let (user, code, version) =
            (need("User", "me@example.org")?, need("RegCode", "…")?, need("OSVersion", "15.6")?);
        let machine = std::env::consts::ARCH;
        let whole = match product.split('/').count() {
            2 => format!("{product}/{machine}"),
            _ => product,
        };
        programs.push(vec!["SUSEConnect"]);
        first = "aaa_base SUSEConnect";
        let connect = format!("SUSEConnect --root {ROOTFS} --product");
        let server =
            stage.field("registerurl").map(|url| format!(" --url {}", quoted(url))).unwrap_or_default();
        let (whole, user, code) = (quoted(&whole), quoted(&user), quoted(&code));
        lines.push_str(&format!("{connect} {whole} --email {user} --regcode {code}{server}\n"));
        let modules = stage.field("modules").map(|f| f.text.clone()).unwrap_or_default();
        for module in modules.split(|c: char| c.is_whitespace() || c == ',').filter(|m| !m.is_empty()) {
            lines.push_str(&format!("{connect} {}\n", quoted(&format!("{module}/{version}/{machine}"))));
        }
    }
    for field in stage.header.iter().filter(|f| f.key.starts_with("otherurl")) {
        let number = field.key.trim_start_matches("otherurl");
        lines.push_str(&format!("{at_root} addrepo -f {} repo-{number}\n", quoted(&field.value)));
    }
    let include = packages(stage, first);
    lines.push_str(&format!(
        "{at_root} refresh\n\
         {at_root} install --auto-agree-with-licenses --download-in-advance {include}\n\
         rm -rf {ROOTFS}/var/cache/zypp\n"
    ));
    let instead = "use Bootstrap: docker and From: opensuse/leap";
    Ok(Plan { programs, script: Box::new(move |_| lines.clone()), instead })
}

fn arch(build: &Build<'_>, source: &SourceText, stage: &Stage) -> Result<Plan> {
    let config = match stage.field("confurl") {
        Some(url) => {
            let bytes = download(build, url, PACMAN_LIMIT).map_err(|e| place(source, url.span, e))?;
            Some(String::from_utf8_lossy(&bytes).into_owned())
        }
        None => None,
    };
    let include = packages(stage, "base");
    let script = move |_: &[&str]| {
        let mut lines = format!(
            "mkdir -p -m 0755 {ROOTFS}/var/cache/pacman/pkg {ROOTFS}/var/lib/pacman {ROOTFS}/var/log {ROOTFS}/etc\n"
        );
        let config = match &config {
            Some(text) => {
                lines.push_str(&file("/dev/shm/pacman.conf", text));
                "/dev/shm/pacman.conf"
            }
            None => "/etc/pacman.conf",
        };
        lines.push_str(&format!(
            "pacman --root {ROOTFS} --dbpath {ROOTFS}/var/lib/pacman --cachedir {ROOTFS}/var/cache/pacman/pkg \
             --logfile {ROOTFS}/var/log/pacman.log --config {config} --noconfirm -Sy {include}\n\
             rm -rf {ROOTFS}/var/cache/pacman/pkg\n"
        ));
        lines
    };
    Ok(Plan {
        programs: vec![vec!["pacman"]],
        script: Box::new(script),
        instead: "use Bootstrap: docker and From: archlinux",
    })
}

/// A file of the web, of at most `limit` bytes.
fn download(build: &Build<'_>, url: &str, limit: u64) -> Result<Vec<u8>> {
    let refused = |why: String| -> Error {
        isles_spec::Error::new(format!("cannot fetch '{url}': {why}")).with_hint("check the URL").into()
    };
    let answer = Web::guarded(&build.options.bootstrap.client).get(url, Wish::default())?;
    if answer.status != 200 {
        return Err(refused(format!("the answer is {}", answer.status)));
    }
    let bytes = answer.bytes(limit).map_err(|e| refused(e.to_string()))?;
    bytes.ok_or_else(|| refused(format!("it has more than {limit} bytes")))
}

/// One program under many names, and the files that a system cannot do without.
fn busybox(build: &Build<'_>, source: &SourceText, stage: &Stage, agent: &Spanned) -> Result<Snapshot> {
    let url = stage
        .field("mirrorurl")
        .ok_or_else(|| needs(source, agent, "MirrorURL", "https://HOST/PATH/busybox"))?;
    let mut snapshot = images::scratch(&build.platform);
    let title = format!("fetching {}", url.text);
    let key = snapshot.key("busybox", build).with("url", &url.text).finish();
    let step = Step { title: &title, key, shortcut: None, created_by: "Bootstrap: busybox".into() };
    build
        .add(&mut snapshot, step, |snapshot, _| {
            let bytes = download(build, url, BUSYBOX_LIMIT)?;
            if !bytes.starts_with(b"\x7fELF") {
                return Err(isles_spec::Error::new(format!("'{}' is no program", url.text))
                    .with_hint(
                        "MirrorURL names the file itself, for example …/1.35.0-x86_64-linux-musl/busybox",
                    )
                    .into());
            }
            let scratch = Scratch::new(build.store)?;
            let folder = scratch.folder("upper")?;
            let view = snapshot.view(build.store)?;
            let mut upper = Upper::new(&folder, &view, build.store.ownership())?;
            let access = Access { mode: 0o755, uid: 0, gid: 0 };
            let program = Path::new("bin/busybox");
            upper.ensure_parents(program, access)?;
            upper.bytes(program, access, (build.seconds(), 0), &bytes)?;
            commit(build, upper)
        })
        .map_err(|e| place(source, url.span, e))?;
    let entries = [
        Entry::text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        Entry::text("/etc/group", "root:x:0:\n"),
        Entry::text("/etc/hosts", "127.0.0.1 localhost\n"),
        Entry::folder("/usr/bin"),
        Entry::folder("/usr/sbin"),
        Entry::folder("/sbin"),
    ];
    write(build, &mut snapshot, "Bootstrap: busybox", &entries, &[])?;
    let install = RunStep {
        argv: ["/bin/busybox", "--install", "-s"].map(str::to_owned).to_vec(),
        env: snapshot.config.config.env.clone(),
        working_dir: "/".into(),
        place: format!("{}:{}", source.name(), source.line_of(agent.span.start)),
        command: "busybox --install".into(),
        ..RunStep::default()
    };
    let key = install.key(build, &snapshot)?;
    let title = "busybox --install";
    let step = Step { title, key, shortcut: None, created_by: title.into() };
    build
        .add(&mut snapshot, step, |snapshot, work| install.run(build, snapshot, work))
        .map_err(|e| place(source, agent.span, e))?;
    Ok(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definition::syntax;

    fn script(text: &str, found: &[&str]) -> std::result::Result<String, String> {
        let source = SourceText::new("x.def", text.as_bytes());
        let stage = syntax::parse(&source).unwrap().stages.remove(0);
        let agent = stage.field("bootstrap").unwrap();
        let plan = match agent.text.as_str() {
            "zypper" => zypper(&source, &stage, agent),
            _ => yum(&source, &stage, agent, None),
        };
        plan.map(|plan| (plan.script)(found)).map_err(|e| e.to_string())
    }

    #[test]
    fn what_the_programs_are_told() {
        for (text, parts) in [
            (
                "Bootstrap: dnf\nMirrorURL: http://m/%{OSversion}/os\nOSVersion: 9\nInclude: dnf bash\nSetopt: a=b\n",
                &["baseurl=http://m/9/os", "--releasever='9'", "--setopt='a=b'", "'coreutils' 'dnf' 'bash'"]
                    [..],
            ),
            ("Bootstrap: yum\nMirrorURL: http://m\nUpdateURL: http://u\n", &["[updates]", "gpgcheck=0"]),
            (
                "Bootstrap: zypper\nMirrorURL: http://m/%{OSVERSION}\nOSVersion: 15.6\nOtherURL1: http://x\nInclude: vim\n",
                &["addrepo 'http://m/15.6' repo", "addrepo -f 'http://x' repo-1", "'aaa_base' 'vim'"],
            ),
            (
                "Bootstrap: zypper\nMirrorURL: http://m\nOSVersion: 15.5\nProduct: SLES/%{OSVERSION}\nUser: me\n\
                 RegCode: c'd\nModules: a, b\nRegisterURL: http://r\n",
                &[
                    "--product 'SLES/15.5/",
                    "--email 'me' --regcode 'c'\\''d' --url 'http://r'",
                    "'b/15.5/",
                    "'SUSEConnect'",
                ],
            ),
        ] {
            let script = script(text, &["dnf"]).unwrap();
            for part in parts {
                assert!(script.contains(part), "{part}: {script}");
            }
            let checked = std::process::Command::new("/bin/sh").args(["-n", "-c", &script]).status().unwrap();
            assert!(checked.success(), "{script}");
        }
        for (text, part) in [
            ("Bootstrap: dnf\n", "needs MirrorURL"),
            ("Bootstrap: dnf\nMirrorURL: http://m/%{OSVERSION}\n", "needs OSVersion"),
            ("Bootstrap: zypper\n", "needs MirrorURL"),
            ("Bootstrap: zypper\nProduct: x\n", "needs ProductPGP or MirrorURL"),
            ("Bootstrap: zypper\nMirrorURL: m\nProduct: x\n", "needs User"),
            ("Bootstrap: dnf\nMirrorURL: %{OSVERSION}\nOSVersion: %{OSVERSION}\n", "made of itself"),
        ] {
            assert!(script(text, &["dnf"]).unwrap_err().contains(part), "{text}");
        }
        let text = "Bootstrap: dnf\nMirrorURL: http://m\n";
        let source = SourceText::new("x.def", text.as_bytes());
        let stage = syntax::parse(&source).unwrap().stages.remove(0);
        let plan = |key| yum(&source, &stage, stage.field("bootstrap").unwrap(), Some(key));
        let checked = (plan("https://k").unwrap().script)(&["dnf"]);
        assert!(checked.contains("gpgcheck=1") && checked.contains("--import 'https://k'"), "{checked}");
        assert!(plan("http://k").is_err());
    }
}

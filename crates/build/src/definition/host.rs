//! Scripts that see the host: `%setup`, and the programs of distributions that fill an empty root. They run in a
//! namespace in which nothing of the host can be written, with the image writable at `$APPTAINER_ROOTFS`.

use std::path::Path;

use isles_engine::{Step, StepOutput, StepRoot};
use isles_spec::{Mount, MountKind, NetworkMode};
use isles_store::{CommitOptions, CommittedLayer};

use super::tree::POST_ENVIRONMENT;
use crate::error::{Error, Result};
use crate::images::DEFAULT_PATH;
use crate::run::SCRIPTS;
use crate::snapshot::{Build, Scratch, Snapshot};

/// Where the image stands.
pub const ROOTFS: &str = "/isles-rootfs";
/// What a script gets of the caller's environment; the first [`OF_HOST`] only where it sees the host.
const INHERITED: [&str; 12] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "LANG",
    "LC_ALL",
    "TERM",
    "TZ",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
];

const OF_HOST: usize = 4;

/// A script and what is known about it.
pub struct HostScript<'s> {
    /// What errors call it.
    pub command: &'s str,
    /// File and line, for errors.
    pub place: String,
    /// The program that is given the script, with its arguments.
    pub interpreter: Vec<String>,
    pub text: &'s str,
    pub env: Vec<String>,
    /// The image that it runs in, in place of the host's files; then the image that is made has nothing yet.
    pub tools: Option<&'s Snapshot>,
    /// Where it starts.
    pub folder: &'s Path,
    pub network: NetworkMode,
    /// Later times become this one (seconds since 1970).
    pub clamp: Option<i64>,
}

impl HostScript<'_> {
    /// Runs the script on the layers of a stage and commits what it wrote.
    pub fn run(&self, build: &Build<'_>, snapshot: &Snapshot, work: u64) -> Result<CommittedLayer> {
        let lowers = snapshot.lowers(build.store)?;
        let scratch = Scratch::new(build.store)?;
        let (upper, overlay_work) = (scratch.folder("upper")?, scratch.folder("work")?);
        let folder = scratch.folder("host")?;
        let view = snapshot.view(build.store)?;
        if let Some(tools) = self.tools {
            crate::run::like_root(&upper, &tools.view(build.store)?, build.store.ownership())?;
        }
        let file = scratch.0.join("script");
        crate::run::write_script(&file, self.text)?;
        let of_tools = self.tools.map(|tools| tools.lowers(build.store)).transpose()?;
        let made = match &of_tools {
            // Of what is written in the tools' image only the root that is filled is kept.
            Some(_) => scratch.folder(&format!("upper{ROOTFS}"))?,
            None => upper.clone(),
        };
        crate::run::like_root(&made, &view, build.store.ownership())?;
        let root = match &of_tools {
            Some(lowers) => StepRoot::Layers { lowers, upper: &upper, work: &overlay_work },
            None => StepRoot::Host {
                folder: &folder,
                at: Path::new(ROOTFS),
                lowers: &lowers,
                upper: &upper,
                work: &overlay_work,
            },
        };
        let script = format!("{SCRIPTS}/script");
        let mut argv = self.interpreter.clone();
        argv.push(script.clone());
        let mut step = Step::new(root, argv);
        step.env = self.environment();
        step.working_dir = std::path::absolute(self.folder).map_err(Error::io("find", self.folder))?;
        step.network = self.network.clone();
        step.mounts = vec![Mount {
            destination: script.into(),
            kind: MountKind::bind(file, false),
            read_only: true,
            optional: false,
        }];
        let outcome = build.engine.run_step(&step, StepOutput { progress: build.progress, id: work })?;
        if !outcome.exit.success() {
            return Err(Error::step(self.place.clone(), self.command, &outcome, build.options.quiet));
        }
        let clamp_mtime = self.clamp.or(build.epoch);
        let options = CommitOptions { clamp_mtime, exclude: Vec::new(), lowers, live: false };
        Ok(build.store.commit_layer(build.lease, &made, &options)?)
    }

    fn environment(&self) -> Vec<String> {
        let mut env = vec![DEFAULT_PATH.to_owned(), "TMPDIR=/dev/shm".to_owned()];
        if let Some(tools) = self.tools {
            env.extend(tools.config.config.env.iter().cloned());
        }
        // Where programs and homes are is the image's to say.
        let inherited = INHERITED.iter().skip(if self.tools.is_some() { OF_HOST } else { 0 });
        let inherited = inherited.filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)));
        env.extend(inherited);
        for name in ["APPTAINER", "SINGULARITY"] {
            env.push(format!("{name}_ROOTFS={ROOTFS}"));
            env.push(format!("{name}_ENVIRONMENT={POST_ENVIRONMENT}"));
        }
        env.extend(self.env.iter().cloned());
        env
    }
}

/// The program for the script of a section, as the words beside its name say: `-c PROGRAM ARGUMENT…` takes the place
/// of `/bin/sh -ex`, other words are further arguments.
///
/// # Errors
/// Nothing stands behind `-c`.
pub fn interpreter<'w>(
    words: impl Iterator<Item = &'w str>,
) -> std::result::Result<Vec<String>, &'static str> {
    let words: Vec<String> = words.map(str::to_owned).collect();
    match words.iter().position(|word| word == "-c") {
        Some(at) if at + 1 == words.len() => Err("'-c' names no program"),
        Some(at) => Ok(words[at + 1..].to_vec()),
        None => Ok(["/bin/sh", "-ex"].map(str::to_owned).into_iter().chain(words).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_for_scripts() {
        for (words, program) in [
            ("", Ok("/bin/sh -ex")),
            ("-u", Ok("/bin/sh -ex -u")),
            ("-c /bin/bash -e", Ok("/bin/bash -e")),
            ("-x -c perl", Ok("perl")),
            ("-c", Err("'-c' names no program")),
        ] {
            let found = interpreter(words.split_whitespace()).map(|argv| argv.join(" "));
            assert_eq!(found.as_deref().map_err(|e| *e), program, "{words}");
        }
    }
}

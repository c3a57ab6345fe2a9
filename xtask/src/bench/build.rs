//! Building: Isles beside buildah and docker's classic builder, cold, with nothing changed, and from a large context.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Isles;
use super::measure::{Case, Outcome, interleave, timed};
use super::peers::{Docker, busybox_tree, cache, must};
use super::report::{Section, at_most, bound, contenders, promises};
use crate::Result;

/// Twelve lines, four of which run something.
const RECIPE: &str = "FROM bench-base
ENV GREETING=hello
WORKDIR /srv
COPY one.txt .
RUN cat one.txt > two.txt
RUN cat two.txt > three.txt
RUN cat three.txt > four.txt
RUN cat four.txt > five.txt
LABEL purpose=bench
EXPOSE 80
USER root
CMD [\"true\"]
";

const FILES: usize = 4000;
const FILE_SIZE: usize = 52_000;

pub fn run(isles: &Isles) -> Result<Section> {
    let work = cache().join("build");
    let _ = fs::remove_dir_all(&work);
    let contexts = contexts(&work)?;
    let docker = Docker::start(&work.join("docker"), &[])?;
    let builders = Builders { isles, docker: &docker, work: &work };
    builders.base(&contexts.base)?;

    let cold = builders.compare(&contexts.recipe, true, 5)?;
    let warm = builders.compare(&contexts.recipe, false, 15)?;
    let one = builders.compare(&contexts.one_of_many, true, 5)?;
    let all = builders.compare(&contexts.all_of_many, true, 5)?;

    let mut text = String::from(
        "A base image of one static busybox is here. buildah builds with `--isolation chroot --layers`, docker with \
         its classic builder, whose engine's CPU time is counted.\n\nA Dockerfile of twelve lines, without cache:\n\n",
    );
    text += &contenders(&cold, "isles build");
    text += "\nThe same, nothing changed:\n\n";
    text += &contenders(&warm, "isles build");
    text += "\nA context of 4,000 files and 200 MB, of which one file is copied, without cache:\n\n";
    text += &contenders(&one, "isles build");
    text += "\nThe same context, all of it copied, without cache:\n\n";
    text += &contenders(&all, "isles build");
    let mut rows = Vec::new();
    let named = |row: Option<super::report::Row>, what: &str| {
        row.map(|mut row| {
            row.what = format!("{what}: {}", row.what);
            row
        })
    };
    if let Some(ours) = warm.iter().find(|o| o.name == "isles build") {
        rows.push(bound("nothing changed", ours.wall() * 1e3, 50.0, "ms"));
    }
    rows.extend(named(at_most(&cold, "isles build", "buildah build", 0.5), "without cache"));
    rows.extend(named(at_most(&cold, "isles build", "docker build", 0.5), "without cache"));
    rows.extend(named(at_most(&one, "isles build", "docker build", 0.1), "one file of many"));
    rows.extend(named(at_most(&all, "isles build", "buildah build", 0.3), "all of many"));
    text += &promises(&rows);
    drop(docker);
    let _ = fs::remove_dir_all(&work);
    Ok(Section { name: "build", title: "Building", text })
}

struct Contexts {
    base: PathBuf,
    recipe: PathBuf,
    one_of_many: PathBuf,
    all_of_many: PathBuf,
}

fn contexts(work: &Path) -> Result<Contexts> {
    let fail = |e: std::io::Error| format!("{}: {e}", work.display());
    let at = |name: &str| work.join(name);
    busybox_tree(&at("tree"))?;
    for name in ["base", "recipe", "many/data"] {
        fs::create_dir_all(at(name)).map_err(fail)?;
    }
    must(Command::new("tar").arg("-C").arg(at("tree")).arg("-cf").arg(at("base/tree.tar")).arg("."))?;
    fs::write(at("base/Dockerfile"), "FROM scratch\nADD tree.tar /\n").map_err(fail)?;
    fs::write(at("recipe/one.txt"), "one\n").map_err(fail)?;
    fs::write(at("recipe/Dockerfile"), RECIPE).map_err(fail)?;
    // Bytes that differ from file to file and do not compress.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = vec![0; FILE_SIZE];
    for n in 0..FILES {
        for chunk in content.chunks_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
        }
        let folder = at("many/data").join(format!("{:02}", n % 40));
        fs::create_dir_all(&folder).map_err(fail)?;
        fs::write(folder.join(format!("{n}.bin")), &content).map_err(fail)?;
    }
    must(Command::new("cp").arg("-al").arg(at("many")).arg(at("all")))?;
    let copies = |what: &str| format!("FROM bench-base\nCOPY {what} /data/\n");
    fs::write(at("many/Dockerfile"), copies("data/07/7.bin")).map_err(fail)?;
    fs::write(at("all/Dockerfile"), copies("data")).map_err(fail)?;
    Ok(Contexts { base: at("base"), recipe: at("recipe"), one_of_many: at("many"), all_of_many: at("all") })
}

/// The three of them, each with a state of its own.
struct Builders<'a> {
    isles: &'a Isles,
    docker: &'a Docker,
    work: &'a Path,
}

impl Builders<'_> {
    fn isles(&self) -> Command {
        let mut command = self.isles.command(&self.work.join("isles"));
        command.args(["build", "-q"]);
        command
    }

    fn buildah(&self) -> Command {
        let mut command = Command::new("buildah");
        command
            .arg("--root")
            .arg(self.work.join("buildah"))
            .arg("--runroot")
            .arg(self.work.join("buildah-run"))
            .args(["build", "-q", "--isolation", "chroot", "--layers"]);
        command
    }

    fn docker(&self) -> Command {
        let mut command = self.docker.command();
        command.env("DOCKER_BUILDKIT", "0").args(["build", "-q"]);
        command
    }

    fn base(&self, context: &Path) -> Result<()> {
        for mut command in [self.isles(), self.buildah(), self.docker()] {
            must(command.args(["-t", "bench-base"]).arg(context))?;
        }
        Ok(())
    }

    fn compare(&self, context: &Path, cold: bool, rounds: usize) -> Result<Vec<Outcome>> {
        let prepare = |mut command: Command| {
            if cold {
                command.arg("--no-cache");
            }
            command.args(["-t", "bench-result"]).arg(context);
            command
        };
        interleave(
            vec![
                Case::new("isles build", || timed(&mut prepare(self.isles()))),
                Case::new("buildah build", || timed(&mut prepare(self.buildah()))),
                Case::new("docker build", || {
                    let before = self.docker.cpu();
                    let mut sample = timed(&mut prepare(self.docker()))?;
                    sample.cpu += self.docker.cpu() - before;
                    Ok(sample)
                }),
            ],
            rounds,
        )
    }
}

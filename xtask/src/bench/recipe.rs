//! What it costs that SOURCE is a recipe with nothing changed, rather than an image.

use std::fs;
use std::process::Command;

use super::Isles;
use super::measure::{Case, interleave};
use super::peers::{busybox_tree, cache, must};
use super::report::{Section, bound, contenders, promises};
use crate::Result;

const RECIPE: &str = "FROM scratch
ADD tree.tar /
ENV GREETING=hello
WORKDIR /srv
COPY one.txt .
RUN cat one.txt > two.txt
RUN cat two.txt > three.txt
RUN cat three.txt > four.txt
RUN cat four.txt > five.txt
LABEL purpose=bench
EXPOSE 80
CMD [\"true\"]
";

pub fn run(isles: &Isles) -> Result<Section> {
    let work = cache().join("recipe");
    let _ = fs::remove_dir_all(&work);
    let tree = work.join("tree");
    let context = work.join("context");
    busybox_tree(&tree)?;
    fs::create_dir_all(&context).map_err(|e| e.to_string())?;
    must(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(context.join("tree.tar")).arg("."))?;
    fs::write(context.join("one.txt"), "one\n").map_err(|e| e.to_string())?;
    fs::write(context.join("Dockerfile"), RECIPE).map_err(|e| e.to_string())?;
    let root = work.join("isles");
    must(isles.command(&root).args(["build", "-q", "-t", "bench"]).arg(&context))?;
    let source = |source: &std::ffi::OsStr| {
        let (source, root) = (source.to_owned(), root.clone());
        move || {
            let mut c = isles.command(&root);
            c.args(["run", "--rm", "--network", "none"]).arg(&source).arg("true");
            c
        }
    };
    let outcomes = interleave(
        vec![
            Case::command("isles run IMAGE", source("bench".as_ref())),
            Case::command("isles run RECIPE", source(context.as_os_str())),
        ],
        30,
    )?;
    let extra = (outcomes[1].wall() - outcomes[0].wall()) * 1e3;
    let text = format!(
        "A Dockerfile of twelve lines, built before, nothing changed.\n\n{}{}",
        contenders(&outcomes, "isles run IMAGE"),
        promises(&[bound("`isles run RECIPE` over `isles run IMAGE`", extra, 20.0, "ms")])
    );
    Ok(Section { name: "recipe", title: "Running a recipe", text })
}

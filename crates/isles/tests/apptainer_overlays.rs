//! Overlays in ext3 images under the name `apptainer`, as root and as an ordinary user: ours and, where it runs here, the
//! real Apptainer's write into the same image.
#![allow(clippy::unwrap_used)]

mod desk;

use std::path::Path;
use std::process::Command;

use desk::{Desk, REAL, Said, both, installed};

fn exec(desk: &Desk, options: &[&str], script: &str) -> Said {
    desk.run(&[&["apptainer", "exec"], options, &["b.sif", "sh", "-c", script]].concat())
}

#[test]
fn overlay_images_are_written_to() {
    if !installed("/bin/busybox") {
        return;
    }
    both(|desk| {
        if !desk.opens_fuse() {
            return;
        }
        desk.busybox(&[]);
        desk.run(&["isles", "save", "-o", "b.tar", "busybox:desk"]).fine();
        desk.run(&["apptainer", "build", "b.sif", "docker-archive:b.tar"]).fine();
        desk.run(&["apptainer", "overlay", "create", "--sparse", "o.img"]).fine();
        let over = ["--overlay", "o.img"];
        let programs = ["fuse2fs", "fuse-overlayfs"].map(|name| Path::new("/usr/bin").join(name));
        if desk.ordinary && !programs.iter().all(|program| program.exists()) {
            let said = exec(desk, &over, "true");
            assert!(said.err.contains("others need fuse2fs and fuse-overlayfs"), "{said:?}");
            println!("skip: fuse2fs and fuse-overlayfs (packages of these names) are missing");
            return;
        }
        exec(desk, &over, "echo kept > /new && mkdir /dir && echo x > /dir/x").fine();
        let uid = if desk.ordinary { 4242 } else { 0 };
        assert_eq!(exec(desk, &over, "cat /new /dir/x; id -u").fine(), format!("kept\nx\n{uid}\n"));
        let read = exec(desk, &["--overlay", "o.img:ro"], "cat /new; touch /other || echo shut");
        assert_eq!(read.fine(), "kept\nshut\n");
        for (options, words) in [
            (&["--overlay", "o.img", "--overlay", "o.img"][..], "more than one writable overlay"),
            (&["--overlay", "o.img", "--writable-tmpfs"], "exclude each other"),
        ] {
            let said = exec(desk, options, "true");
            assert!(said.code == Some(255) && said.err.contains(words), "{said:?}");
        }
        let check = Command::new("/sbin/e2fsck").args(["-f", "-n"]).arg(desk.path("home/o.img")).output();
        assert!(check.as_ref().is_ok_and(|output| output.status.success()), "{check:?}");
        with_the_real_one(desk);
        // A partition of the image is read by all, and written to with --writable.
        desk.run(&["apptainer", "overlay", "create", "--sparse", "b.sif"]).fine();
        exec(desk, &[], "test ! -e /new").fine();
        let written = exec(desk, &["--writable"], "echo inside > /inside");
        if desk.ordinary {
            assert!(
                written.code == Some(255) && written.err.contains("a partition of a SIF file"),
                "{written:?}"
            );
        } else {
            written.fine();
            assert_eq!(exec(desk, &[], "cat /inside; touch /other || echo shut").fine(), "inside\nshut\n");
        }
    });
}

/// Each finds what the other has written and removed.
fn with_the_real_one(desk: &Desk) {
    let real = Path::new(REAL).join("apptainer");
    if !desk.ordinary || !installed(real.to_str().unwrap()) {
        return;
    }
    desk.with_range();
    let real = |script: &str| {
        let mut command =
            desk.command(&["apptainer", "exec", "--overlay", "o.img", "b.sif", "sh", "-c", script]);
        command.env("PATH", format!("{REAL}:/usr/sbin:/usr/bin:/sbin:/bin"));
        Said::of(command.output().unwrap())
    };
    let first = real("cat /new; rm /new; echo real > /real");
    if first.code != Some(0) {
        println!("skip: the real Apptainer writes into no image here: {}", first.err);
        return;
    }
    assert_eq!(first.fine(), "kept\n");
    let ours = exec(desk, &["--overlay", "o.img"], "test ! -e /new && cat /real; rm -r /dir; mkdir /dir");
    assert_eq!(ours.fine(), "real\n");
    assert_eq!(real("ls /dir; cat /real; test ! -e /new && echo gone").fine(), "real\ngone\n");
}

//! Programs of another architecture: built and run by a static qemu of the host that nobody has registered.
#![allow(clippy::unwrap_used)]

mod desk;
mod shelf;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use desk::Desk;
use shelf::*;

/// A program for arm64 that says "arm64 runs": an ELF file that may lie anywhere, as most are, with eight instructions.
fn program() -> Vec<u8> {
    const TEXT: &[u8] = b"arm64 runs\n";
    let code: [u32; 8] = [
        0xd280_0020,                            // mov x0, #1
        0x1000_00e1,                            // adr x1, TEXT
        0xd280_0002 | (TEXT.len() as u32) << 5, // mov x2, #length
        0xd280_0808,                            // mov x8, #64: write
        0xd400_0001,                            // svc #0
        0xd280_0000,                            // mov x0, #0
        0xd280_0ba8,                            // mov x8, #93: exit
        0xd400_0001,                            // svc #0
    ];
    let (header, start) = (64u64, 120u64);
    let mut out = b"\x7fELF\x02\x01\x01".to_vec();
    out.resize(16, 0);
    for half in [3u16, 183] {
        out.extend(half.to_le_bytes());
    }
    out.extend(1u32.to_le_bytes());
    for word in [start, header, 0] {
        out.extend(word.to_le_bytes());
    }
    out.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        out.extend(half.to_le_bytes());
    }
    // One segment that is read and run.
    let length = start + 32 + TEXT.len() as u64;
    out.extend([1u32, 5].map(u32::to_le_bytes).concat());
    for word in [0, 0, 0, length, length, 0x1_0000] {
        out.extend(u64::to_le_bytes(word));
    }
    out.extend(code.map(u32::to_le_bytes).concat());
    out.extend(TEXT);
    out
}

/// The folder of a qemu for arm64, on a machine that has no other way to run its programs.
fn interpreter() -> Option<PathBuf> {
    if isles_spec::Platform::host().architecture != "amd64" {
        println!("skip: this machine may run programs for arm64 by itself");
        return None;
    }
    if fs::read_dir("/proc/sys/fs/binfmt_misc").is_ok_and(|entries| entries.flatten().count() > 2) {
        println!("skip: this machine may have an interpreter for everybody");
        return None;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).find(|folder| folder.join("qemu-aarch64-static").exists());
    if found.is_none() {
        println!("skip: no qemu-aarch64-static on PATH (Debian's qemu-user-static has it)");
    }
    found
}

#[test]
fn a_qemu_of_the_host_is_lent() {
    let Some(folder) = interpreter() else { return };
    let before: Vec<_> =
        fs::read_dir("/proc/sys/fs/binfmt_misc").unwrap().flatten().map(|e| e.path()).collect();
    for shelf in both() {
        fs::write(shelf.path("arm64"), program()).unwrap();
        fs::copy("/bin/busybox", shelf.path("amd64")).unwrap();
        for name in ["arm64", "amd64"] {
            fs::set_permissions(shelf.path(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        fs::write(
            shelf.path("Dockerfile"),
            "FROM scratch\nARG TARGETARCH\nCOPY --chmod=755 $TARGETARCH /bin/echo\nRUN [\"/bin/echo\", \"amd64 runs\"]\n\
             ENTRYPOINT [\"/bin/echo\"]\n",
        )
        .unwrap();
        let run = |path: &str, words: &[&str]| {
            let mut command = shelf.command_in("state", words);
            command.env("PATH", path);
            Said::of(command.output().unwrap())
        };
        let usual = "/usr/sbin:/usr/bin:/sbin:/bin";
        let with = format!("{usual}:{}", folder.display());
        let build = ["build", "-t", "app", "--platform", "linux/amd64,linux/arm64", "."];
        if folder.as_path() != Path::new("/usr/bin") {
            run(usual, &build).fails(1, &["Dockerfile:4:", "no static qemu-aarch64", "qemu-user-static"]);
        }
        let said = run(&with, &build);
        for word in ["amd64 runs", "arm64 runs"] {
            assert!(said.err.contains(word), "{}", said.err);
        }
        said.fine();
        let out = run(&with, &["run", "--rm", "--platform", "linux/arm64", "app", "ignored"]).fine();
        assert_eq!(out, "arm64 runs\n");
        let out = run(&with, &["run", "--rm", "--read-only", "--init", "--platform", "linux/arm64", "app"]);
        assert_eq!(out.fine(), "arm64 runs\n");
        assert_eq!(run(usual, &["run", "--rm", "app", "native"]).fine(), "native\n");
    }
    let after: Vec<_> =
        fs::read_dir("/proc/sys/fs/binfmt_misc").unwrap().flatten().map(|e| e.path()).collect();
    assert_eq!(before, after, "nothing of it is seen outside");
}

#[test]
fn with_a_range_of_ids_the_namespace_is_one_more() {
    let Some(folder) = interpreter() else { return };
    if !rustix::process::geteuid().is_root() || !desk::installed("newuidmap") {
        println!("skip: only root gives a range of IDs to a user");
        return;
    }
    let desk = Desk::new(true);
    desk.with_range();
    desk.file("df/arm64", program());
    desk.file(
        "df/Dockerfile",
        "FROM scratch\nCOPY --chmod=755 arm64 /p\nRUN [\"/p\"]\nENTRYPOINT [\"/p\"]\n",
    );
    let isles = |words: &[&str]| {
        let mut command = desk.command(&[&["isles"], words].concat());
        let path =
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin:{}", desk.path("bin").display(), folder.display());
        desk::Said::of(command.env("PATH", path).output().unwrap())
    };
    let said = isles(&["build", "-t", "app", "--platform", "linux/arm64", "df"]);
    assert!(said.err.contains("arm64 runs"), "{}", said.err);
    said.fine();
    let said = isles(&["run", "--rm", "--platform", "linux/arm64", "app"]);
    assert_eq!(said.fine(), "arm64 runs\n");
}

use super::*;
use isles_spec::Quiet;
use isles_store::Ownership;
use std::process::Command;
use std::time::Instant;

/// chroot for development.
struct Chroot;

impl Runner for Chroot {
    fn run(
        &self,
        root: &Path,
        argv: Vec<String>,
        env: Vec<String>,
        _: &dyn Progress,
        _: u64,
    ) -> Result<(u8, Vec<u8>)> {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--uts", "sh", "-c"]);
        command.arg("mount -t proc proc \"$0/proc\" && mount --bind /dev \"$0/dev\" && exec chroot \"$0\" env -i \"$@\"");
        command.arg(root).args(env).args(argv);
        let out = command.output().unwrap();
        let mut tail = out.stdout;
        tail.extend(out.stderr);
        eprintln!("{}", String::from_utf8_lossy(&tail));
        Ok((out.status.code().unwrap_or(255) as u8, tail))
    }
}

#[test]
fn develop() {
    let Ok(suite) = std::env::var("DEV_SUITE") else { return };
    let dir = std::env::var("DEV_STORE").unwrap();
    let store = Store::open(&dir, Ownership::Root).unwrap();
    let lease = store.lease().unwrap();
    let include = std::env::var("DEV_INCLUDE").unwrap_or_default();
    let suite = DebianSuite {
        suite,
        include: include.split(',').filter(|w| !w.is_empty()).map(str::to_owned).collect(),
        ..Default::default()
    };
    let options = BootstrapOptions { cache: std::env::var("DEV_CACHE").is_ok(), ..Default::default() };
    let t = Instant::now();
    let made = bootstrap(&Chroot, &store, &lease, &suite, &options, &Quiet);
    match made {
        Ok(made) => eprintln!(
            "{} {} packages {} {} reused {} in {:?}",
            made.diff_id,
            made.packages.len(),
            made.size,
            made.date,
            made.reused,
            t.elapsed()
        ),
        Err(e) => {
            use isles_spec::Hint;
            panic!("{e}\nhint: {:?}", e.hint())
        }
    }
}

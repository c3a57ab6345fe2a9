//! Pushes an image of a store: `cargo run --release -p isles-registry --example push -- DIR NAME TARGET`.

use std::process::ExitCode;

use isles_registry::{Client, ClientOptions, Error, Pushed};
use isles_spec::{Hint, Quiet, Reference};
use isles_store::{Ownership, Store};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, name, target] = &arguments[..] else {
        eprintln!("usage: push DIR NAME TARGET");
        return ExitCode::from(2);
    };
    match push(dir, name, target) {
        Ok(p) => {
            let digest = p.target.digest;
            let (sent, mounted, there) = (p.uploaded, p.mounted, p.existing);
            println!("{digest}: {sent} blobs sent ({} bytes), {mounted} mounted, {there} there", p.bytes);
            ExitCode::SUCCESS
        }
        Err(e) => {
            eprintln!("error: {e}");
            if let Some(hint) = e.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::FAILURE
        }
    }
}

fn push(dir: &str, name: &str, target: &str) -> Result<Pushed, Error> {
    let root = rustix::process::geteuid().is_root();
    let store = Store::open(dir, if root { Ownership::Root } else { Ownership::Single })?;
    Client::new(ClientOptions::default()).push(&store, name, None, &Reference::parse(target)?, &Quiet)
}

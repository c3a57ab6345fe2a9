//! Pulls an image into a store: `cargo run --release -p isles-registry --example pull -- DIR NAME`.

use std::process::ExitCode;

use isles_registry::{Client, ClientOptions, Error, Pulled};
use isles_spec::{Hint, Platform, Quiet, Reference};
use isles_store::{Ownership, Store};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, name] = &arguments[..] else {
        eprintln!("usage: pull DIR NAME");
        return ExitCode::from(2);
    };
    match pull(dir, name) {
        Ok(pulled) => {
            let (fetched, reused, bytes) = (pulled.layers_fetched, pulled.layers_reused, pulled.bytes);
            println!("{}: {fetched} layers fetched ({bytes} bytes), {reused} reused", pulled.target);
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

fn pull(dir: &str, name: &str) -> Result<Pulled, Error> {
    let root = rustix::process::geteuid().is_root();
    let store = Store::open(dir, if root { Ownership::Root } else { Ownership::Single })?;
    let client = Client::new(ClientOptions::default());
    client.pull(&store, &Reference::parse(name)?, &Platform::host(), &Quiet)
}

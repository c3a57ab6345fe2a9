//! `isles load`

use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use isles_engine::image_file::{self, Form};
use isles_sif::Sif;
use isles_spec::{FileSystemKind, OnDisk, Reference, Source};
use isles_store::{Imported, Lease, SifSource, Store};

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::progress::Bars;

/// Read images from a file or folder that docker, podman, skopeo or `isles save` wrote.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles load -i app.tar
  docker save app | isles load
  isles load -i oci:layout:1.0
  isles load -i app.sif --tag app:1.0")]
pub struct Args {
    /// Read this archive or OCI layout folder (also written oci:DIR[:TAG]) instead of standard input; may be
    /// compressed with gzip or zstd. A file of SIF, squashfs or ext3 gives one image.
    #[arg(short, long, value_name = "FILE")]
    input: Option<String>,
    /// A name for the image of a file of SIF, squashfs or ext3, which has none of its own.
    #[arg(long, value_name = "NAME[:TAG]", requires = "input")]
    tag: Vec<Reference>,
    /// Print only names and IDs, no progress.
    #[arg(short, long)]
    quiet: bool,
}

pub fn cmd_load(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    let lease = store.lease()?;
    let bars = Bars::new(&cx.ui.quieter(args.quiet));
    let images = match args.input.as_deref() {
        Some(input) => from(store, &lease, input, &args.tag, &bars)?,
        None if io::stdin().is_terminal() => {
            return Err(Failure::new("standard input is a terminal, which holds no image")
                .with_hint("name a file with -i, or redirect standard input"));
        }
        None => store.import_archive(&lease, &mut io::stdin(), &bars)?,
    };
    drop(bars);
    for (image, names) in &images {
        for name in names {
            cx.ui.line(&format!("Loaded image: {}", name.familiar()))?;
        }
        if names.is_empty() {
            cx.ui.line(&format!("Loaded image ID: {}", image.id()))?;
        }
    }
    Ok(Code::SUCCESS)
}

fn from(
    store: &Store,
    lease: &Lease,
    input: &str,
    tags: &[Reference],
    bars: &Bars,
) -> Result<Vec<Imported>, Failure> {
    let no_tags = || match tags {
        [] => Ok(()),
        _ => Err(Failure::new(
            "--tag is for files of SIF, squashfs and ext3; the images of archives bring their names",
        )),
    };
    if let Some(rest) = input.strip_prefix("oci:") {
        no_tags()?;
        let (dir, name) = layout_and_name(rest);
        return Ok(store.import_oci_dir(lease, dir, name, bars)?);
    }
    let path = match Source::parse(input, |_| OnDisk::Recipe) {
        Ok(Source::OciArchive { path, tag: None } | Source::DockerArchive { path, name: None }) => path,
        Ok(Source::OciArchive { .. } | Source::DockerArchive { .. }) => {
            return Err(Failure::new(format!("'{input}' names one image of an archive, and all are loaded"))
                .with_hint("leave the name away, or unpack the archive and use oci:DIR:TAG"));
        }
        _ => PathBuf::from(input),
    };
    if let Some(form) = image_file::detect(&path) {
        let names: Vec<Reference> = tags.iter().map(Reference::normalized).collect();
        let (file, name) = (image_file::open(&path)?, path.display().to_string());
        let image = match form {
            Form::Sif => {
                let sif = Sif::from_file(file, name).map_err(isles_store::Error::from)?;
                store.import_sif(lease, SifSource::Sif(&sif), &names, bars)?
            }
            Form::Bare(FileSystemKind::Ext) => {
                store.import_sif(lease, SifSource::Ext(&file, &name), &names, bars)?
            }
            Form::Bare(_) => store.import_sif(lease, SifSource::Squashfs(&file, &name), &names, bars)?,
        };
        return Ok(vec![(image, names)]);
    }
    no_tags()?;
    if path.is_dir() {
        return Ok(store.import_oci_dir(lease, &path, None, bars)?);
    }
    let mut file = open(&path)?;
    Ok(store.import_archive(lease, &mut file, bars)?)
}

/// The folder of a layout and the name of an image in it. Both may have colons, so what is on disk decides.
fn layout_and_name(text: &str) -> (&Path, Option<&str>) {
    let colons = text.rmatch_indices(':').map(|(at, _)| at);
    let split = |at: usize| (Path::new(&text[..at]), Some(&text[at + 1..]));
    if Path::new(text).is_dir() {
        return (Path::new(text), None);
    }
    colons.map(split).find(|(dir, _)| dir.is_dir()).unwrap_or((Path::new(text), None))
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|e| Failure::because(format!("cannot open {}", path.display()), &e))
}

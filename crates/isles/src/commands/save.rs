//! `isles save`

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use isles_build::definition::Origin;
use isles_build::{SifOptions, write_oci_sif, write_sif};
use isles_spec::time::parse_rfc3339;
use isles_spec::{Digest, Platform, Reference};
use isles_store::{ExportFormat, Image, Lease, Store};

use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::progress::Bars;

/// Write images into a file or folder, for `isles load`, docker, podman and skopeo.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  isles save -o app.tar app:1.0
  isles save app:1.0 | ssh host docker load
  isles save --format oci-dir -o layout app:1.0
  isles save --format sif -o app.sif app:1.0")]
pub struct Args {
    /// Names or IDs.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<String>,
    /// Write here instead of to standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What to write.
    #[arg(long, value_enum, default_value_t = Kind::DockerArchive)]
    format: Kind,
    /// Write the image for this platform.
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<Platform>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// A tar file that every docker reads; it is an OCI layout too. Layers are not compressed.
    DockerArchive,
    /// A tar file with an OCI layout, layers as they are in the store.
    OciArchive,
    /// A folder with an OCI layout; other images in it stay.
    OciDir,
    /// A SIF file of one image, for Apptainer and Singularity.
    Sif,
    /// The same as an OCI image in a SIF file, for SingularityCE's --oci.
    OciSif,
}

type Chosen = Vec<(Image, Vec<Reference>)>;

pub fn cmd_save(cx: &Context, args: &Args) -> Result<Code, Failure> {
    let engine = cx.engine()?;
    let store = engine.store();
    let lease = store.lease()?;
    let images = choose(store, &lease, args)?;
    let bars = Bars::new(&cx.ui);
    match (args.format, &args.output) {
        (Kind::Sif | Kind::OciSif, Some(file)) => sif(store, &images, args.format, file)?,
        (Kind::Sif | Kind::OciSif, None) => {
            return Err(
                Failure::new("a SIF file cannot be written to standard output").with_hint("name it with -o")
            );
        }
        (Kind::OciDir, Some(dir)) => store.export_oci_dir(&images, dir, &bars)?,
        (Kind::OciDir, None) => {
            return Err(
                Failure::new("a folder cannot be written to standard output").with_hint("name it with -o")
            );
        }
        (kind, Some(file)) => {
            into_file(file, |out| Ok(store.export_archive(&images, format(kind), out, &bars)?))?
        }
        (kind, None) => {
            let out = io::stdout();
            if out.is_terminal() {
                return Err(Failure::new("an archive is not for the terminal")
                    .with_hint("name a file with -o, or redirect standard output"));
            }
            store.export_archive(&images, format(kind), &mut BufWriter::new(out.lock()), &bars)?;
        }
    }
    Ok(Code::SUCCESS)
}

fn format(kind: Kind) -> ExportFormat {
    match kind {
        Kind::OciArchive => ExportFormat::OciArchive,
        Kind::DockerArchive | Kind::OciDir | Kind::Sif | Kind::OciSif => ExportFormat::DockerArchive,
    }
}

/// The one image as a SIF file, whose content depends on the image alone.
fn sif(store: &Store, images: &Chosen, kind: Kind, file: &Path) -> Result<(), Failure> {
    let [(image, names)] = images.as_slice() else {
        return Err(Failure::new(format!("a SIF file holds one image, not {}", images.len())));
    };
    let name = names.first().map_or_else(|| image.id().to_string(), |name| name.familiar().to_string());
    write_file(store, image, &name, kind == Kind::OciSif, file)
}

/// Writes an image, which is called `name`, into a SIF file; with `oci` as the OCI image that it is.
pub fn write_file(store: &Store, image: &Image, name: &str, oci: bool, file: &Path) -> Result<(), Failure> {
    let epoch = isles_build::inherited_epoch();
    let created = image.config.created.as_deref().and_then(parse_rfc3339);
    let origin = Origin::of_image("docker", name, epoch.or(created).unwrap_or(0));
    let options = SifOptions { origin, latest: epoch, ..SifOptions::default() };
    if oci {
        write_oci_sif(store, image, &options, file)?;
    } else {
        write_sif(store, image, &options, file)?;
    }
    Ok(())
}

/// The images, each once with the names that were given for it, held against collection.
fn choose(store: &Store, lease: &Lease, args: &Args) -> Result<Chosen, Failure> {
    let mut chosen: BTreeMap<Digest, usize> = BTreeMap::new();
    let mut out = Chosen::new();
    for name in &args.images {
        let image = store.resolve(name, args.platform.as_ref())?;
        lease.hold(&image.manifest_digest)?;
        let reference = name.parse::<Reference>().ok().map(|r| r.normalized());
        let named = reference.filter(|r| r.digest().is_none() && matches!(store.lookup(r), Ok(Some(_))));
        let place = *chosen.entry(image.manifest_digest.clone()).or_insert_with(|| {
            out.push((image, Vec::new()));
            out.len() - 1
        });
        out[place].1.extend(named);
    }
    for (_, names) in &mut out {
        names.sort();
        names.dedup();
    }
    Ok(out)
}

/// Writes a file that appears when it is complete. What is there and no regular file, such as a pipe, is written
/// to as it is.
pub fn into_file(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |e: io::Error| Failure::because(format!("cannot write {}", path.display()), &e);
    if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
        let file = File::options().write(true).open(path).map_err(failed)?;
        return write(&mut BufWriter::new(file));
    }
    isles_sif::create_whole(path, 0o666, |file| {
        let mut out = BufWriter::new(file);
        write(&mut out)?;
        out.flush().map_err(failed)
    })
}

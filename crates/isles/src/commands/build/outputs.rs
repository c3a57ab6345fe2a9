//! Where `isles build` puts what it made, and what it writes about it.

use std::path::{Path, PathBuf};

use isles_build::Built;
use isles_build::output::{self, Annotation, Kind, Output, Outputs, Written};
use isles_registry::Client;
use isles_spec::{Progress, Reference};
use isles_store::Store;
use serde_json::{Map, Value, json};

use crate::failure::Failure;

/// Options that say what becomes of an image.
#[derive(Debug, Clone, clap::Args)]
pub struct OutputOptions {
    /// Where the result goes instead of into the store: a folder for its files, - for an archive of them, or
    /// type=local|tar|oci|docker|sif|image|registry|cacheonly with dest=PATH, tar=false, name=NAME, push=true,
    /// compression=uncompressed|gzip|zstd, compression-level=N, force-compression=true, oci-mediatypes=false;
    /// may be repeated.
    #[arg(short, long, value_name = "OUTPUT", value_parser = Output::parse)]
    output: Vec<Output>,
    /// Send the image to the registry of its name.
    #[arg(long)]
    push: bool,
    /// Keep the image under its name here, also where other outputs are asked for.
    #[arg(long)]
    load: bool,
    /// Add an annotation to the image's manifest; or to index:, manifest-descriptor: or index-descriptor:, and
    /// only for manifest[PLATFORM]:.
    #[arg(long, value_name = "[PLACE:]NAME=VALUE", value_parser = Annotation::parse)]
    annotation: Vec<Annotation>,
    /// Write what was made as JSON: digests, descriptor, names.
    #[arg(long, value_name = "FILE")]
    metadata_file: Option<PathBuf>,
    /// Write the image ID to this file, too.
    #[arg(long, value_name = "FILE")]
    iidfile: Option<PathBuf>,
}

impl OutputOptions {
    /// The same with a SIF file, which is named otherwise; an image that gets a name stays here under it.
    pub fn and_sif(&self, file: Option<&Path>, named: bool) -> OutputOptions {
        let mut all = self.clone();
        if let Some(file) = file {
            all.output.push(Output::sif(file));
            all.load |= named;
        }
        all
    }

    /// Everything that was asked for, by whatever option.
    fn all(&self) -> Vec<Output> {
        let mut all = self.output.clone();
        if self.push {
            let mut images = 0;
            for output in &mut all {
                if let Kind::Image { push, .. } = &mut output.kind {
                    *push = true;
                    images += 1;
                }
            }
            if images == 0 {
                all.push(Output::image(true));
            }
        }
        let here = |o: &Output| matches!(o.kind, Kind::Image { push: false, .. });
        if all.is_empty() || (self.load && !all.iter().any(here)) {
            all.push(Output::image(false));
        }
        all
    }

    /// Whether standard output is for an archive.
    pub fn takes_stdout(&self) -> bool {
        self.output.iter().any(Output::is_stdout)
    }

    /// Refuses what cannot be carried out, before anything is built.
    pub fn check(&self, names: &[Reference], platforms: usize) -> Result<(), Failure> {
        let all = self.all();
        let wanted = Outputs { outputs: &all, names, annotations: &self.annotation };
        output::check(&wanted, platforms).map_err(|e| super::failure(&e))
    }

    /// Carries the outputs out, and writes about them.
    pub fn write(
        &self,
        store: &Store,
        client: &Client,
        built: &Built,
        names: &[Reference],
        progress: &dyn Progress,
    ) -> Result<(), Failure> {
        let all = self.all();
        let wanted = Outputs { outputs: &all, names, annotations: &self.annotation };
        let written =
            output::write(store, client, built, &wanted, progress).map_err(|e| super::failure(&e))?;
        if let Some(file) = &self.iidfile {
            put(file, built.image.id().to_string().as_bytes())?;
        }
        if let Some(file) = &self.metadata_file {
            let text = serde_json::to_vec_pretty(&metadata(built, &written))
                .map_err(|e| Failure::because("cannot write the metadata", &e))?;
            put(file, &text)?;
        }
        Ok(())
    }
}

/// What `docker buildx build --metadata-file` says, under the same names.
fn metadata(built: &Built, written: &Written) -> Value {
    let mut out = Map::new();
    if let Some(image) = &written.image {
        if let [only] = built.made.as_slice() {
            out.insert("containerimage.config.digest".into(), json!(only.image.id()));
        }
        out.insert("containerimage.descriptor".into(), json!(image));
        out.insert("containerimage.digest".into(), json!(image.digest));
    }
    if !written.names.is_empty() {
        let names: Vec<String> = written.names.iter().map(ToString::to_string).collect();
        out.insert("image.name".into(), json!(names.join(",")));
    }
    for made in &built.made {
        let several = built.made.len() > 1;
        for predicate in made.attested.iter().filter(|p| p.file == "provenance.json") {
            let suffix = if several { format!("/{}", made.platform) } else { String::new() };
            out.insert(format!("buildx.build.provenance{suffix}"), predicate.body.clone());
        }
    }
    Value::Object(out)
}

fn put(file: &Path, bytes: &[u8]) -> Result<(), Failure> {
    std::fs::write(file, bytes)
        .map_err(|e| Failure::because(format!("cannot write '{}'", file.display()), &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_options_come_to() {
        let args = |output: &[&str], push, load| OutputOptions {
            output: output.iter().map(|o| Output::parse(o).unwrap()).collect(),
            push,
            load,
            annotation: Vec::new(),
            metadata_file: None,
            iidfile: None,
        };
        let parse = |o: &&str| Output::parse(o).unwrap();
        for (output, push, load, expected) in [
            (&[][..], false, false, &["type=image"][..]),
            (&["out"], false, false, &["out"]),
            (&["out"], false, true, &["out", "type=image"]),
            (&[], true, false, &["type=registry"]),
            (&["type=image"], true, false, &["type=registry"]),
            (&["out", "-"], true, true, &["out", "-", "type=registry", "type=image"]),
            (&["type=docker"], false, true, &["type=image"]),
            (&["type=sif,dest=x.sif"], false, false, &["type=sif,dest=x.sif"]),
        ] {
            let all = args(output, push, load).all();
            assert_eq!(all, expected.iter().map(parse).collect::<Vec<_>>(), "{output:?} {push} {load}");
        }
        let sif = Path::new("x.sif");
        assert_eq!(args(&[], false, false).and_sif(None, true).all(), [parse(&"type=image")]);
        assert_eq!(args(&[], false, false).and_sif(Some(sif), false).all(), [parse(&"type=sif,dest=x.sif")]);
        assert_eq!(args(&[], false, false).and_sif(Some(sif), true).all().len(), 2, "it is named, too");
    }
}

//! The options of `isles build` that count for definition files only.

use std::path::{Path, PathBuf};

use isles_build::definition::{DefinitionOptions, Sections};
use isles_spec::{Error as Spelling, Mount};

#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Definition files")]
pub struct DefinitionArgs {
    /// Only these sections count: names with commas, all, or none.
    #[arg(long, value_name = "LIST", default_value = "all", hide_default_value = true)]
    section: Sections,
    /// Write the image to this folder as well, as a tree of files.
    #[arg(long, value_name = "FOLDER")]
    sandbox: Option<PathBuf>,
    /// Begin with this folder, which --sandbox has written, and write the result back to it.
    #[arg(long, value_name = "FOLDER", conflicts_with = "sandbox")]
    update: Option<PathBuf>,
    /// Put labels and help of the recipe in the place of the base's, and replace what --sandbox has written before.
    #[arg(long)]
    force: bool,
    /// Let whoever owns a file of the image read and write it.
    #[arg(long)]
    fix_perms: bool,
    /// The recipe is a specification in JSON.
    #[arg(long)]
    json: bool,
    /// Take values for {{ NAME }} from NAME=VALUE lines of this file.
    #[arg(long, value_name = "FILE")]
    build_arg_file: Option<PathBuf>,
    /// Warn of build arguments that nothing uses, and go on.
    #[arg(long)]
    warn_unused_build_args: bool,
    /// Show this file or folder of the host to %post and %test; may be repeated.
    #[arg(long, value_name = "FROM:TO[:ro]")]
    bind: Vec<String>,
    /// Run %pre on the host, with all rights that you have.
    #[arg(long)]
    host_scripts: bool,
    /// The library that `Bootstrap: library` asks, with the token of APPTAINER_LIBRARY_TOKEN [env: APPTAINER_LIBRARY].
    #[arg(long, value_name = "URL")]
    library: Option<String>,
    /// Take dnf, zypper or pacman from this image, where `Bootstrap: dnf` and its like need one [default:
    /// ISLES_TOOLS_IMAGE, else this machine's].
    #[arg(long, value_name = "IMAGE")]
    tools_image: Option<String>,
    /// The public keys for Fingerprints [default: those of Apptainer].
    #[arg(long, value_name = "FILE")]
    keyring: Option<PathBuf>,
}

impl DefinitionArgs {
    pub fn options(&self, here: &Path, home: Option<&Path>) -> Result<DefinitionOptions, Spelling> {
        let (library, library_token) = isles_apptainer::library_settings();
        let mounts = self.bind.iter().map(|text| Mount::parse_volume(text, here, home));
        Ok(DefinitionOptions {
            argument_file: self.build_arg_file.clone(),
            unused_arguments_warn: self.warn_unused_build_args,
            sections: self.section.clone(),
            json: self.json,
            update: self.update.clone(),
            sandbox: self.sandbox.clone(),
            force: self.force,
            fix_permissions: self.fix_perms,
            host_scripts: self.host_scripts,
            mounts: mounts.collect::<Result<_, _>>()?,
            lender: None,
            opener: Some(isles_apptainer::opener_by_variables()),
            library: self.library.clone().or(library),
            library_token,
            tools_image: self.tools_image.clone(),
            keyring: self.keyring.clone(),
        })
    }
}

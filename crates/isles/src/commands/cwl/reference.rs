//! Options of the reference runner (cwltool 3) beside those that `isles cwl run` explains: what they mean here, and why some
//! of them are refused.

use std::path::PathBuf;

use isles_spec::PullPolicy;
use isles_spec::nearest::nearest;

use crate::failure::Failure;
use crate::ui::Ui;

#[derive(Debug, clap::Args)]
pub struct Reference {
    /// Print the outputs and steps that --target may name, and run nothing.
    #[arg(long)]
    pub print_targets: bool,
    /// Print the files that the job names, and run nothing.
    #[arg(long)]
    pub print_input_deps: bool,
    /// Print the packed document with only what the outputs or steps of --target need, and run nothing.
    #[arg(long, requires = "target")]
    pub print_subgraph: bool,
    /// Print files relative to the document (`primary`) or the current folder (`cwd`).
    #[arg(long, value_name = "TO", value_parser = ["primary", "cwd"])]
    pub relative_deps: Option<String>,
    /// Print the versions of CWL that are understood.
    #[arg(long)]
    pub print_supported_versions: bool,
    #[arg(long, hide = true)]
    pub version: bool,
    /// Write the outputs, as they are printed, to this file as well.
    #[arg(short = 'w', long, value_name = "FILE")]
    pub write_summary: Option<PathBuf>,
    /// Use only images that are here.
    #[arg(long, conflicts_with = "force_docker_pull")]
    pub disable_pull: bool,
    /// Ask for newer images, also where there is one here.
    #[arg(long)]
    pub force_docker_pull: bool,
    /// Look no formats up in ontologies (`$schemas`).
    #[arg(long)]
    pub skip_schemas: bool,
    /// Show the options of the process, as --help after it does.
    #[arg(long, hide = true)]
    pub tool_help: bool,

    // Containers are Isles' own, whatever they are called elsewhere.
    #[arg(long, hide = true, conflicts_with = "no_container")]
    podman: bool,
    #[arg(long, hide = true, conflicts_with = "no_container")]
    singularity: bool,
    #[arg(long, hide = true, conflicts_with = "no_container")]
    udocker: bool,

    // How it is here in any case.
    #[arg(long, hide = true)]
    rm_container: bool,
    #[arg(long, hide = true)]
    rm_tmpdir: bool,
    #[arg(long, hide = true)]
    no_read_only: bool,
    #[arg(long, hide = true)]
    enable_pull: bool,
    #[arg(long, hide = true)]
    enable_color: bool,
    #[arg(long, hide = true)]
    strict: bool,
    #[arg(long, hide = true)]
    doc_cache: bool,
    #[arg(long, hide = true)]
    disable_js_validation: bool,
    #[arg(long, hide = true)]
    disable_ga4gh_tool_registry: bool,
    #[arg(long, hide = true)]
    disable_user_provenance: bool,
    #[arg(long, hide = true)]
    disable_host_provenance: bool,
    #[arg(long, hide = true)]
    verbose: bool,

    // Without effect, which is told.
    #[arg(long, hide = true)]
    timestamps: bool,
    #[arg(long, hide = true)]
    js_console: bool,
    #[arg(long, hide = true)]
    non_strict: bool,
    #[arg(long, hide = true, value_name = "FILE")]
    js_hint_options_file: Option<PathBuf>,

    // Refused.
    #[arg(long, hide = true)]
    print_rdf: bool,
    #[arg(long, hide = true)]
    rdf_serializer: Option<String>,
    #[arg(long, hide = true)]
    print_pre: bool,
    #[arg(long, hide = true)]
    no_doc_cache: bool,
    #[arg(long, hide = true)]
    leave_container: bool,
    #[arg(long, hide = true)]
    cidfile_dir: Option<String>,
    #[arg(long, hide = true)]
    cidfile_prefix: Option<String>,
    #[arg(long, hide = true)]
    custom_net: Option<String>,
    #[arg(long, hide = true)]
    log_dir: Option<String>,
    #[arg(long, hide = true)]
    mpi_config_file: Option<String>,
    #[arg(long, hide = true)]
    user_space_docker_cmd: Option<String>,
    #[arg(long, hide = true)]
    singularity_sandbox_path: Option<String>,
    #[arg(long, hide = true)]
    enable_ga4gh_tool_registry: bool,
    #[arg(long, hide = true)]
    add_ga4gh_tool_registry: Option<String>,
    #[arg(long, hide = true)]
    enable_user_provenance: bool,
    #[arg(long, hide = true)]
    enable_host_provenance: bool,
    #[arg(long, hide = true)]
    orcid: Option<String>,
    #[arg(long, hide = true)]
    full_name: Option<String>,
}

impl Reference {
    /// Refuses what there is not here, and tells what has no effect.
    pub fn check(&self, ui: &Ui) -> Result<(), Failure> {
        const NO_CONTAINER_IDS: &str = "steps are no containers that stay; `isles flow show` tells of them";
        const NO_PERSON: &str = "--provenance writes nothing down of the person and the machine";
        let refused = [
            (self.print_rdf, "--print-rdf", "--pack prints the document as one, and --print-dot its graph"),
            (self.rdf_serializer.is_some(), "--rdf-serializer", "no RDF is printed"),
            (self.print_pre, "--print-pre", "--pack prints the document with all that it refers to"),
            (self.no_doc_cache, "--no-doc-cache", "remove the folder cache/web of the state directory"),
            (self.leave_container, "--leave-container", NO_CONTAINER_IDS),
            (self.cidfile_dir.is_some(), "--cidfile-dir", NO_CONTAINER_IDS),
            (self.cidfile_prefix.is_some(), "--cidfile-prefix", NO_CONTAINER_IDS),
            (
                self.custom_net.is_some(),
                "--custom-net",
                "a step with NetworkAccess has a network of its own, from which it gets out",
            ),
            (self.log_dir.is_some(), "--log-dir", "`isles flow logs` shows what each step wrote"),
            (self.mpi_config_file.is_some(), "--mpi-config-file", "MPI tools are started by `mpirun -n`"),
            (
                self.user_space_docker_cmd.is_some(),
                "--user-space-docker-cmd",
                "containers are Isles' own, and need no other program",
            ),
            (
                self.singularity_sandbox_path.is_some(),
                "--singularity-sandbox-path",
                "images are in Isles' store",
            ),
            (
                self.enable_ga4gh_tool_registry,
                "--enable-ga4gh-tool-registry",
                "name the document by its file or URL",
            ),
            (
                self.add_ga4gh_tool_registry.is_some(),
                "--add-ga4gh-tool-registry",
                "name the document by its file or URL",
            ),
            (self.enable_user_provenance, "--enable-user-provenance", NO_PERSON),
            (self.enable_host_provenance, "--enable-host-provenance", NO_PERSON),
            (self.orcid.is_some(), "--orcid", NO_PERSON),
            (self.full_name.is_some(), "--full-name", NO_PERSON),
        ];
        if let Some((_, option, hint)) = refused.into_iter().find(|(given, ..)| *given) {
            return Err(Failure::new(format!("`{option}` of the reference runner is not supported"))
                .with_hint(hint.to_owned()));
        }
        let idle = [
            (self.timestamps, "--timestamps"),
            (self.js_console, "--js-console"),
            (self.non_strict, "--non-strict"),
            (self.js_hint_options_file.is_some(), "--js-hint-options-file"),
        ];
        for (_, option) in idle.into_iter().filter(|(given, _)| *given) {
            ui.note(&format!("`{option}` has no effect here"));
        }
        Ok(())
    }

    /// When images are pulled.
    pub fn pull(&self) -> PullPolicy {
        match (self.disable_pull, self.force_docker_pull) {
            (true, _) => PullPolicy::Never,
            (_, true) => PullPolicy::Always,
            _ => PullPolicy::Missing,
        }
    }
}

/// Refuses a word that stands where the process does, and looks like an option; `A` are those that there are.
pub fn is_process<A: clap::Args>(word: &str) -> Result<(), Failure> {
    if !word.starts_with('-') || std::path::Path::new(word).exists() {
        return Ok(());
    }
    let name = word.split_once('=').map_or(word, |(name, _)| name);
    let failure = Failure::new(format!("`isles cwl run` has no option '{name}'"));
    let options = A::augment_args(clap::Command::new("run"));
    let known: Vec<String> =
        options.get_arguments().filter_map(|option| Some(format!("--{}", option.get_long()?))).collect();
    Err(match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => failure.with_hint(format!("did you mean '{near}'?")),
        None => {
            failure.with_hint("options of the process stand behind it; `isles cwl run --help` lists these")
        }
    })
}

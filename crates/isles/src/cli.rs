//! The command line as a whole: the table of commands, and the way from the arguments to an exit code.

use std::error::Error;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::commands;
use crate::context::Context;
use crate::failure::{Code, Failure};
use crate::ui::Ui;

mod unsupported;

/// Build an environment from a recipe, keep it as an image, run it anywhere.
#[derive(Debug, Parser)]
#[command(name = "isles", version, propagate_version = false, subcommand_required = true)]
#[command(arg_required_else_help = true, disable_help_subcommand = false)]
pub struct Cli {
    #[command(flatten)]
    pub options: Options,
    #[command(subcommand)]
    pub command: Command,
}

// What can be said before the command. No comment of documentation: it would be the program's.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Where images and containers are kept [default: /var/lib/isles for root, ~/.local/share/isles for others].
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// Say nothing but errors and what was asked for.
    #[arg(short, long)]
    pub quiet: bool,
}

/// Makes the table of commands: what each is called, and which function of which module does it.
macro_rules! commands {
    ($($(#[$attribute:meta])* $variant:ident $word:literal $module:ident::$function:ident,)*) => {
        /// Every command, in the order in which `--help` lists them.
        #[derive(Debug, Subcommand)]
        pub enum Command {
            $($(#[$attribute])* #[command(name = $word)] $variant(Box<commands::$module::Args>),)*
        }

        impl Command {
            fn run(&self, cx: &Context) -> Result<Code, Failure> {
                match self {
                    $(Command::$variant(args) => commands::$module::$function(cx, args),)*
                }
            }
        }

        /// The command alone, with its options. Those of all others, some two thousand, take longer to make than a
        /// container takes to start.
        fn alone(word: &str) -> Option<clap::Command> {
            match word {
                $($word => {
                    let command = clap::Command::new($word);
                    Some(<commands::$module::Args as clap::Args>::augment_args(command))
                })*
                _ => None,
            }
        }
    };
}

commands! {
    Run "run" run::cmd_run,
    Build "build" build::cmd_build,
    Builder "builder" builder::cmd_builder,
    Create "create" create::cmd_create,
    Start "start" start::cmd_start,
    Stop "stop" stop::cmd_stop,
    Restart "restart" restart::cmd_restart,
    Kill "kill" kill::cmd_kill,
    Pause "pause" pause::cmd_pause,
    Unpause "unpause" unpause::cmd_unpause,
    Wait "wait" wait::cmd_wait,
    Exec "exec" exec::cmd_exec,
    Attach "attach" attach::cmd_attach,
    Logs "logs" logs::cmd_logs,
    Events "events" events::cmd_events,
    Stats "stats" stats::cmd_stats,
    Top "top" top::cmd_top,
    Update "update" update::cmd_update,
    Ps "ps" ps::cmd_ps,
    Port "port" port::cmd_port,
    Rename "rename" rename::cmd_rename,
    Rm "rm" rm::cmd_rm,
    Cp "cp" cp::cmd_cp,
    Diff "diff" diff::cmd_diff,
    Commit "commit" commit::cmd_commit,
    Export "export" export::cmd_export,
    Import "import" import::cmd_import,
    Volume "volume" volume::cmd_volume,
    Network "network" network::cmd_network,
    Pod "pod" pod::cmd_pod,
    Images "images" images::cmd_images,
    Pull "pull" pull::cmd_pull,
    Push "push" push::cmd_push,
    Copy "copy" copy::cmd_copy,
    Search "search" search::cmd_search,
    Registry "registry" registry::cmd_registry,
    Tag "tag" tag::cmd_tag,
    Rmi "rmi" rmi::cmd_rmi,
    Save "save" save::cmd_save,
    Load "load" load::cmd_load,
    Inspect "inspect" inspect::cmd_inspect,
    History "history" history::cmd_history,
    Login "login" login::cmd_login,
    Logout "logout" logout::cmd_logout,
    Container "container" container::cmd_container,
    Image "image" image::cmd_image,
    System "system" system::cmd_system,
    Info "info" info::cmd_info,
    Df "df" df::cmd_df,
    Prune "prune" prune::cmd_prune,
    Verify "verify" verify::cmd_verify,
    Cwl "cwl" cwl::cmd_cwl,
    Flow "flow" flow::cmd_flow,
    Doctor "doctor" doctor::cmd_doctor,
    Completion "completion" completion::cmd_completion,
    Generate "generate" generate::cmd_generate,
    Man "man" man::cmd_man,
    Oci "oci" oci::cmd_oci,
    #[command(visible_alias = "singularity")]
    Apptainer "apptainer" apptainer::cmd_apptainer,
    Version "version" version::cmd_version,
}

/// The command line as far as it is needed to understand these words.
fn understood(argv: &[OsString]) -> clap::Command {
    #[derive(Parser)]
    #[command(name = "isles", version, propagate_version = false, subcommand_required = true)]
    struct Before {
        #[command(flatten)]
        _options: Options,
    }
    match command_of(argv).and_then(|word| alone(word.to_str()?)) {
        Some(command) => Before::command().subcommand(command),
        // There is no command, or none of that name: whoever reads what is said then wants all of them.
        None => Cli::command(),
    }
}

/// Program names that stand for commands of `isles`, so that a link is enough to be that program.
const PERSONALITIES: [(&str, &[&str]); 3] =
    [("isles-oci", &["oci"]), ("isles-runtime", &["oci"]), ("cwl-runner", &["cwl", "run"])];

/// Exit code of `isles run` and of the OCI runtime when Isles itself fails, as docker has it.
pub const OWN_FAILURE: u8 = 125;

/// Runs the program with `argv` and says how it ended.
pub fn main(mut argv: Vec<OsString>) -> ExitCode {
    if let [_, word, handed] = argv.as_slice()
        && word == isles_engine::monitor::WORD
    {
        return ExitCode::from(isles_engine::monitor::main(&handed.to_string_lossy()));
    }
    if argv.first().is_some_and(|name| isles_apptainer::is_name(name.as_ref())) {
        return commands::apptainer::main(&Context::new(Ui::new(false), None), argv);
    }
    if let Some(command) = argv.first().and_then(|name| personality(name.as_ref())) {
        argv.splice(1..1, command.iter().map(Into::into));
    }
    let own_failure = if meant(&argv).is_some_and(|(word, _)| word == "run") { OWN_FAILURE } else { 1 };
    let parsed = understood(&argv).try_get_matches_from(&argv).and_then(|m| Cli::from_arg_matches(&m));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => {
            if let Some(failure) = unsupported::failure(&argv, &error) {
                Ui::new(false).error(&failure);
                return ExitCode::from(if own_failure == OWN_FAILURE { OWN_FAILURE } else { 2 });
            }
            return usage(&error, own_failure);
        }
    };
    let cx = Context::new(Ui::new(cli.options.quiet), cli.options.root.clone());
    match cli.command.run(&cx) {
        Ok(Code(code)) => ExitCode::from(code),
        Err(failure) => {
            cx.ui.error(&failure);
            ExitCode::from(failure.code.unwrap_or(own_failure))
        }
    }
}

/// The command that is meant, by its own name where it is called by that of docker's group, and the words behind it.
fn meant(argv: &[OsString]) -> Option<(&str, &[OsString])> {
    let first = command_of(argv)?;
    let at = argv.iter().position(|word| std::ptr::eq(word, first))?;
    let second = argv.get(at + 1).and_then(|word| word.to_str()).unwrap_or_default();
    let (word, taken) = commands::group::meant(first.to_str()?, second);
    Some((word, argv.get(at + taken..).unwrap_or_default()))
}

/// The word that names the command, past the options of the whole program.
fn command_of(argv: &[OsString]) -> Option<&OsString> {
    let mut words = argv.iter().skip(1);
    loop {
        let word = words.next()?;
        if word == "--root" {
            words.next();
        } else if !word.as_encoded_bytes().starts_with(b"-") {
            return Some(word);
        }
    }
}

pub fn personality(program: &Path) -> Option<&'static [&'static str]> {
    let name = program.file_name()?.to_str()?;
    PERSONALITIES.iter().find(|(program, _)| *program == name).map(|(_, command)| *command)
}

/// Prints what clap has to say: help and version are data, the rest is talk. A value that one of our nouns does
/// not accept is said in the noun's own words, with its hint.
fn usage(error: &clap::Error, own_failure: u8) -> ExitCode {
    match error.source().and_then(|e| e.downcast_ref::<isles_spec::Error>()) {
        Some(spelling) => Ui::new(false).error(&spelling.clone().into()),
        // Nothing can be said where the output is closed.
        None => drop(error.print()),
    }
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ if own_failure == OWN_FAILURE => ExitCode::from(OWN_FAILURE),
        _ => ExitCode::from(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_commands_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_alone_is_what_it_is_among_all() {
        let all = Cli::command();
        let words = all.get_subcommands().map(|command| command.get_name().to_owned());
        for word in words.collect::<Vec<_>>() {
            let argv: Vec<OsString> = ["isles", &word, "--help"].map(Into::into).to_vec();
            let one = understood(&argv);
            assert_eq!(one.get_subcommands().count(), 1, "{word}");
            // Help is an error to clap; what takes all words for somebody else's has none.
            let shown = |command: clap::Command| {
                command.try_get_matches_from(&argv).map(drop).map_err(|e| e.to_string())
            };
            assert_eq!(shown(one), shown(Cli::command()), "{word}");
        }
        for line in ["isles", "isles --help", "isles nothing", "isles help run"] {
            let argv: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
            assert!(understood(&argv).get_subcommands().count() > 10, "{line}");
        }
    }

    #[test]
    fn the_command_is_found_past_options() {
        for (line, command) in [
            ("isles run --root x", Some("run")),
            ("isles --root run -q ps", Some("ps")),
            ("isles --root=/x run ps", Some("run")),
            ("isles -q", None),
            ("isles --root", None),
        ] {
            let argv: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
            assert_eq!(command_of(&argv).and_then(|c| c.to_str()), command, "{line}");
        }
    }

    #[test]
    fn program_names() {
        assert_eq!(personality(Path::new("/usr/bin/isles-oci")), Some(&["oci"][..]));
        assert_eq!(personality(Path::new("cwl-runner")), Some(&["cwl", "run"][..]));
        assert_eq!(personality(Path::new("isles")), None);
    }
}

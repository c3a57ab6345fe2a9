//! Docker's groups of commands: `isles container ls` is `isles ps`, `isles image rm` is `isles rmi`. What is in a group only
//! has a file of its own.

/// Makes a group: what its commands are called there, and which module does them.
macro_rules! group {
    ($(#[$about:meta])* $cmd:ident;
     $($variant:ident $word:literal $(| $alias:literal)? $module:ident::$function:ident,)*) => {
        #[derive(Debug, clap::Args)]
        $(#[$about])*
        pub struct Args {
            #[command(subcommand)]
            command: Command,
        }

        #[derive(Debug, clap::Subcommand)]
        enum Command {
            $(#[command(name = $word $(, alias = $alias)?)] $variant(Box<crate::commands::$module::Args>),)*
        }

        pub fn $cmd(
            cx: &crate::context::Context,
            args: &Args,
        ) -> Result<crate::failure::Code, crate::failure::Failure> {
            match &args.command {
                $(Command::$variant(args) => crate::commands::$module::$function(cx, args),)*
            }
        }
    };
}

pub(crate) use group;

/// What commands of a group are called where they are called otherwise outside of it.
const OTHERWISE: [(&str, &str, &str); 3] =
    [("container", "ls", "ps"), ("image", "ls", "images"), ("image", "rm", "rmi")];

/// The command that two words mean, and how many of them it takes: a group's, or the first one.
pub fn meant<'a>(first: &'a str, second: &'a str) -> (&'a str, usize) {
    if !matches!(first, "container" | "image" | "system") {
        return (first, 1);
    }
    let other = OTHERWISE.iter().find(|(group, word, _)| (*group, *word) == (first, second));
    (other.map_or(second, |(.., meaning)| meaning), 2)
}

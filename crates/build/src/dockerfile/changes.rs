//! Changes of a configuration as instructions of a Dockerfile: `commit --change` and `import --change`.

use std::path::Path;
use std::sync::Mutex;

use isles_spec::image::ImageConfig;

use super::execute::{SHELL, absolute, folder};
use super::instruction::{self, CommandLine, Instruction};
use super::scope::{self, Scope, Words};
use super::syntax::parse_trigger;
use crate::error::Result;

/// Applies instructions, one or more a text, in their order. Variables in them are those of the image.
///
/// # Errors
/// A text is no instruction, or one that needs a container or files.
pub fn apply(config: &mut ImageConfig, changes: &[String]) -> Result<()> {
    let mut has_cmd = false;
    for change in changes {
        let tree = parse_trigger("--change", change)?;
        let warnings = Mutex::new(Vec::new());
        let words = Words { source: &tree.source, escape: tree.escape, warnings: &warnings };
        let none = Scope::default();
        for node in &tree.nodes {
            let instruction = instruction::instruction(&tree.source, node)?;
            let inner = &mut config.config;
            let env = inner.env.clone();
            let expand = |word| words.expand_in(word, &none, &env);
            let argv = |command: &CommandLine, shell: &Option<Vec<String>>| match command.shell {
                false => command.words.clone(),
                true => {
                    let shell = shell.clone().unwrap_or_else(|| SHELL.map(str::to_owned).to_vec());
                    [shell, command.words.clone()].concat()
                }
            };
            match &instruction {
                Instruction::Env(pairs) => {
                    for (name, value) in pairs {
                        scope::set(&mut inner.env, &expand(name)?, &expand(value)?);
                    }
                }
                Instruction::Label(pairs) => {
                    for (name, value) in pairs {
                        inner.labels.insert(expand(name)?, expand(value)?);
                    }
                }
                Instruction::Cmd(command) => {
                    inner.cmd = Some(argv(command, &inner.shell));
                    has_cmd = true;
                }
                Instruction::Entrypoint(command) => {
                    inner.entrypoint = Some(argv(command, &inner.shell));
                    // A command of before was meant for another entrypoint.
                    if !has_cmd {
                        inner.cmd = None;
                    }
                }
                Instruction::Shell(shell) => inner.shell = Some(shell.clone()),
                Instruction::Expose(ports) => {
                    for word in ports {
                        for text in words.split(word, &none, &env)? {
                            let ports =
                                super::ports::parse(&text).map_err(|why| tree.source.at(word.span, why))?;
                            inner.exposed_ports.extend(ports.into_iter().map(|p| (p, Default::default())));
                        }
                    }
                }
                Instruction::Volume(places) => {
                    for word in places {
                        inner.volumes.insert(expand(word)?, Default::default());
                    }
                }
                Instruction::User(word) => inner.user = expand(word)?,
                Instruction::Workdir(word) => {
                    let before = Path::new("/").join(&inner.working_dir);
                    inner.working_dir = folder(&absolute(&before, &expand(word)?));
                }
                Instruction::StopSignal(word) => {
                    let signal = expand(word)?;
                    if !super::ports::is_signal(&signal) {
                        return Err(tree.source.at(word.span, format!("'{signal}' is no signal")).into());
                    }
                    inner.stop_signal = Some(signal);
                }
                Instruction::Healthcheck(check) => inner.healthcheck = Some(check.clone()),
                Instruction::Onbuild(text) => inner.on_build.push(text.clone()),
                Instruction::Maintainer(name) => config.author = Some(name.text.clone()),
                Instruction::Add(_) | Instruction::Copy(_) | Instruction::Run(_) | Instruction::Arg(_) => {
                    return Err(tree
                        .source
                        .at(node.span, format!("{} is no change of a configuration", node.name()))
                        .with_suggestion(
                            "ENV, LABEL, CMD, ENTRYPOINT, EXPOSE, USER, VOLUME, WORKDIR and the like are",
                        )
                        .into());
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use isles_spec::Platform;

    fn changed(changes: &[&str]) -> Result<ImageConfig> {
        let mut config = ImageConfig::empty(&Platform::host());
        config.config.env = vec!["A=1".into()];
        config.config.cmd = Some(vec!["old".into()]);
        config.config.working_dir = "/w".into();
        let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
        apply(&mut config, &changes).map(|()| config)
    }

    #[test]
    fn instructions_change_the_configuration() {
        let config = changed(&[
            "ENV B=$A-2 A=3",
            "LABEL x=y",
            "EXPOSE 80 53/udp",
            "VOLUME /data",
            "USER www",
            "WORKDIR sub",
            "STOPSIGNAL INT",
            "CMD [\"a\", \"b\"]",
            "ONBUILD RUN x",
        ])
        .unwrap()
        .config;
        assert_eq!(config.env, ["A=3", "B=1-2"]);
        assert_eq!(config.labels["x"], "y");
        assert_eq!(config.exposed_ports.keys().collect::<Vec<_>>(), ["53/udp", "80/tcp"]);
        assert!(config.volumes.contains_key("/data"));
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("www", "/w/sub"));
        assert_eq!(config.cmd.unwrap(), ["a", "b"]);
        assert_eq!(config.stop_signal.as_deref(), Some("INT"));
        assert_eq!(config.on_build, ["RUN x"]);
        let config = changed(&["ENTRYPOINT run me"]).unwrap().config;
        assert_eq!(config.entrypoint.unwrap(), ["/bin/sh", "-c", "run me"]);
        assert_eq!(config.cmd, None);
        let both = changed(&["CMD x\nENTRYPOINT [\"e\"]"]).unwrap().config;
        assert_eq!(both.cmd.unwrap(), ["/bin/sh", "-c", "x"]);
    }

    #[test]
    fn what_needs_a_container_is_refused() {
        for (change, word) in [
            ("RUN x", "RUN"),
            ("COPY a b", "COPY"),
            ("ADD a b", "ADD"),
            ("ARG x", "ARG"),
            ("FROM x", "FROM"),
            ("STOPSIGNAL NEVER", "NEVER"),
            ("EXPOSE x", "x"),
            ("BOGUS", "BOGUS"),
        ] {
            assert!(changed(&[change]).unwrap_err().to_string().contains(word), "{change}");
        }
    }
}

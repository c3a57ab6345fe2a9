//! Images without a recipe: out of a container (`commit`), and out of an archive of files (`import`).

use std::io::Read;

use isles_engine::Engine;
use isles_spec::image::{ContainerConfig, History, ImageConfig};
use isles_spec::time::rfc3339;
use isles_spec::{Platform, Reference, Workload};
use isles_store::Image;

use crate::dockerfile::changes::apply;
use crate::dockerfile::scope;
use crate::error::Result;
use crate::options::inherited_epoch;

/// What is said about an image that is made without a recipe.
#[derive(Debug, Clone, Default)]
pub struct Remarks {
    pub author: Option<String>,
    pub message: Option<String>,
    /// Instructions of a Dockerfile that change the configuration.
    pub changes: Vec<String>,
    pub names: Vec<Reference>,
}

/// Makes an image of what a container wrote, on the image that it stands on, with the configuration that it was started
/// with. With `pause` it stands still meanwhile; `warn` is told where it cannot.
pub fn commit(
    engine: &Engine,
    container: &str,
    remarks: &Remarks,
    pause: bool,
    warn: &dyn Fn(&str),
) -> Result<Image> {
    let store = engine.store();
    let lease = store.lease()?;
    let (info, base, layer) = engine.layer_of_container(&lease, container, pause, warn)?;
    let mut config = base.config.clone();
    started_with(&mut config.config, &info.record.workload);
    config.rootfs.diff_ids.push(layer.diff_id.clone());
    let created_by = info.record.command.join(" ");
    describe(&mut config, remarks, Some(created_by), remarks.message.clone())?;
    let mut layers = base.manifest.layers.clone();
    layers.push(layer.blob);
    Ok(store.assemble(&lease, &config, &layers, &remarks.names)?)
}

/// Makes an image of one layer out of a tar archive. `from` is where that came from.
pub fn import(
    engine: &Engine,
    input: &mut dyn Read,
    from: &str,
    platform: &Platform,
    remarks: &Remarks,
) -> Result<Image> {
    let store = engine.store();
    let lease = store.lease()?;
    let layer = store.layer_from_tar(&lease, input)?;
    let mut config = ImageConfig::empty(platform);
    config.rootfs.diff_ids.push(layer.diff_id.clone());
    let message = remarks.message.clone().unwrap_or_else(|| format!("Imported from {from}"));
    describe(&mut config, remarks, None, Some(message))?;
    Ok(store.assemble(&lease, &config, &[layer.blob], &remarks.names)?)
}

fn describe(
    config: &mut ImageConfig,
    remarks: &Remarks,
    created_by: Option<String>,
    comment: Option<String>,
) -> Result<()> {
    let now = || {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |d| d.as_secs().cast_signed())
    };
    let created = rfc3339(inherited_epoch().unwrap_or_else(now));
    config.created = Some(created.clone());
    if remarks.author.is_some() {
        config.author.clone_from(&remarks.author);
    }
    apply(config, &remarks.changes)?;
    config.history.push(History {
        created: Some(created),
        created_by,
        author: remarks.author.clone(),
        comment,
        ..History::default()
    });
    Ok(())
}

/// What the caller said when the container was made stays said.
fn started_with(config: &mut ContainerConfig, workload: &Workload) {
    match &workload.entrypoint {
        Some(words) => {
            config.entrypoint = Some(words.clone()).filter(|words| !words.is_empty());
            config.cmd = Some(workload.command.clone()).filter(|words| !words.is_empty());
        }
        None if !workload.command.is_empty() => config.cmd = Some(workload.command.clone()),
        None => {}
    }
    for entry in &workload.env {
        match entry.split_once('=') {
            Some((name, value)) => scope::set(&mut config.env, name, value),
            // It took the image's away.
            None => config.env.retain(|own| own.split('=').next() != Some(entry)),
        }
    }
    if let Some(user) = workload.user.as_ref().filter(|user| !user.is_empty()) {
        config.user.clone_from(user);
    }
    if let Some(folder) = &workload.working_dir {
        config.working_dir = folder.display().to_string();
    }
    if workload.stop_signal.is_some() {
        config.stop_signal.clone_from(&workload.stop_signal);
    }
    config.labels.extend(workload.labels.clone());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_committed_as_it_was_started() {
        let mut config = ContainerConfig {
            env: vec!["A=1".into(), "B=2".into()],
            cmd: Some(vec!["sh".into()]),
            entrypoint: Some(vec!["init".into()]),
            ..ContainerConfig::default()
        };
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let workload = Workload {
            command: words("ls -l"),
            env: words("A=5 B C=3"),
            user: Some("www".into()),
            labels: [("k".to_owned(), "v".to_owned())].into(),
            ..Workload::default()
        };
        started_with(&mut config, &workload);
        assert_eq!(config.env, ["A=5", "C=3"]);
        assert_eq!(
            (config.cmd.clone().unwrap(), config.entrypoint.clone().unwrap()),
            (words("ls -l"), words("init"))
        );
        assert_eq!((config.user.as_str(), config.labels["k"].as_str()), ("www", "v"));
        started_with(&mut config, &Workload { entrypoint: Some(vec![]), ..Workload::default() });
        assert_eq!((config.cmd, config.entrypoint), (None, None));
    }
}

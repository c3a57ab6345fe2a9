//! `cwl:overrides`: requirements that a job, or a file beside it, puts in the place of a process's own (an extension of
//! the reference runner).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::{Body, Process, Requirement, Workflow};
use crate::tree::Sources;

/// Requirements for what one identifier names.
#[derive(Debug)]
pub struct Override {
    pub document: PathBuf,
    /// A process of the document, or a step, as `main/step`. None is the document's own process.
    pub fragment: Option<String>,
    pub requirements: Vec<Requirement>,
}

/// The process with what is overridden in it; and which overrides found nothing.
pub fn apply(process: &Arc<Process>, list: &[Override], sources: &Sources) -> (Arc<Process>, Vec<usize>) {
    let mut used = vec![false; list.len()];
    let process = walk(process, list, sources, &mut used);
    let unused = used.iter().enumerate().filter(|(_, used)| !**used).map(|(i, _)| i).collect();
    (process, unused)
}

fn walk(process: &Arc<Process>, list: &[Override], sources: &Sources, used: &mut [bool]) -> Arc<Process> {
    let file = sources.get(process.at.file);
    let here: Vec<usize> =
        (0..list.len()).filter(|i| file.is_some_and(|file| file.path == list[*i].document)).collect();
    let own = file.and_then(|file| file.path.file_name()).and_then(|name| name.to_str()).unwrap_or_default();
    let mut changed = (**process).clone();
    for i in &here {
        let fits = match list[*i].fragment.as_deref() {
            None => process.id == own || process.id == "main",
            Some(fragment) => process.id == fragment,
        };
        if fits {
            used[*i] = true;
            replace(&mut changed.requirements, &list[*i].requirements);
        }
    }
    if let Body::Workflow(Workflow { steps }) = &mut changed.body {
        for step in steps {
            step.run = walk(&step.run, list, sources, used);
            for i in &here {
                let Some(fragment) = list[*i].fragment.as_deref() else { continue };
                let named = fragment == &*step.id
                    || fragment.rsplit_once('/').is_some_and(|(of, id)| of == process.id && id == &*step.id);
                if named {
                    used[*i] = true;
                    replace(&mut step.requirements, &list[*i].requirements);
                    // A process says for itself what its step says; here the step is meant to win.
                    let mut run = (*step.run).clone();
                    replace(&mut run.requirements, &list[*i].requirements);
                    step.run = Arc::new(run);
                }
            }
        }
    }
    Arc::new(changed)
}

/// Each class of requirements has one.
fn replace(own: &mut Vec<Requirement>, others: &[Requirement]) {
    for other in others {
        own.retain(|requirement| match (requirement, other) {
            (Requirement::Unknown(one, _), Requirement::Unknown(other, _)) => one != other,
            (one, other) => std::mem::discriminant(one) != std::mem::discriminant(other),
        });
        own.push(other.clone());
    }
}

/// `FILE#NAME`, where the file is relative to a folder.
pub fn target(word: &str, folder: &Path) -> (PathBuf, Option<String>) {
    let plain = word.strip_prefix("file://").unwrap_or(word);
    let (file, fragment) = plain.split_once('#').map_or((plain, None), |(file, name)| (file, Some(name)));
    let path = crate::document::clean(&folder.join(file));
    (path, fragment.filter(|name| !name.is_empty()).map(str::to_owned))
}

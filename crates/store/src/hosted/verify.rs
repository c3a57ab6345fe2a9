//! Whether what repositories have is what it should be.

use std::collections::HashMap;

use isles_spec::Digest;

use crate::error::At;
use crate::hash::digest_of_stream;
use crate::{Error, Result, Store};

const BUFFER: usize = 1 << 20;

/// What is wrong with a blob of a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostedProblem {
    /// Its bytes are not those of its digest.
    Damaged,
    /// The repository has it, and it is not here.
    Missing,
}

/// What a verification of repositories found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostedReport {
    /// Blobs that were hashed, manifests among them, each once.
    pub blobs: u64,
    pub bytes: u64,
    /// Repository, blob, and what is wrong with it.
    pub problems: Vec<(String, Digest, HostedProblem)>,
}

impl Store {
    /// Hashes what these repositories have. What was left out of pushes on purpose is not missed. Changes nothing.
    pub fn verify_hosted(&self, names: &[String]) -> Result<HostedReport> {
        let mut report = HostedReport::default();
        let mut known: HashMap<Digest, Option<HostedProblem>> = HashMap::new();
        for name in names {
            let hosted = self.hosted(name)?;
            let mut wanted = hosted.blobs()?;
            wanted.extend(hosted.manifests()?);
            wanted.sort();
            wanted.dedup();
            for digest in wanted {
                let problem = match known.get(&digest) {
                    Some(problem) => *problem,
                    None => {
                        let problem = self.problem_of(&digest, &mut report)?;
                        known.insert(digest.clone(), problem);
                        problem
                    }
                };
                if let Some(problem) = problem {
                    report.problems.push((name.clone(), digest, problem));
                }
            }
        }
        Ok(report)
    }

    fn problem_of(&self, digest: &Digest, report: &mut HostedReport) -> Result<Option<HostedProblem>> {
        let mut file = match self.open_blob(digest) {
            Ok(file) => file,
            Err(Error::NoBlob { .. }) => return Ok(Some(HostedProblem::Missing)),
            Err(e) => return Err(e),
        };
        let mut told = |n| report.bytes += n;
        let read = digest_of_stream(&mut file, digest.algorithm(), &mut vec![0; BUFFER], &mut told);
        let (actual, _) = read.at("read", &self.blob_path(digest))?;
        report.blobs += 1;
        Ok((actual != *digest).then_some(HostedProblem::Damaged))
    }
}

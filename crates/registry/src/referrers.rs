//! What refers to a manifest: signatures, attestations, bills of materials (distribution-spec, "Listing Referrers" and
//! "Referrers Tag Schema" for registries that have no such list).

use isles_spec::image::{Descriptor, Index, media_type};
use isles_spec::{Digest, Reference};

use crate::auth::Scope;
use crate::client::Repository;
use crate::manifest::MANIFEST_LIMIT;
use crate::pages::{Page, Pages};
use crate::upload::Sender;
use crate::{Error, Result};

const PAGES: usize = 100;
const LIST: &str = "its list of referrers";

impl Repository<'_> {
    /// What has `subject` as its subject.
    pub(crate) fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let object = format!("the referrers of {subject}");
        let mut pages = Pages {
            repository: self,
            scope: Scope::of(&self.name, "pull"),
            operation: "pull",
            object: &object,
            doing: format!("listing {object}"),
            list: LIST,
            limit: MANIFEST_LIMIT,
            left: PAGES,
            next: Some(self.url(&format!("referrers/{subject}"))?),
        };
        let mut found = Vec::new();
        loop {
            match pages.next::<Index>(&[400, 404, 405, 501])? {
                Page::Read(index) => found.extend(index.manifests),
                Page::Absent => return Ok(self.listed_under_tag(subject)?.manifests),
                Page::End => return Ok(found),
            }
        }
    }

    fn listed_under_tag(&self, subject: &Digest) -> Result<Index> {
        match self.manifest(&tag_of(&self.reference()?, subject)?) {
            Ok(found) if media_type::is_index(&found.media_type) => serde_json::from_slice(&found.bytes)
                .map_err(|e| Error::Protocol { host: self.registry.clone(), why: format!("{LIST}: {e}") }),
            Ok(_) | Err(Error::NotFound { .. }) => Ok(Index::new(Vec::new())),
            Err(e) => Err(e),
        }
    }
}

impl Sender<'_> {
    /// Lists a referrer under its subject's tag, for a registry that does not do it.
    pub(crate) fn list_under_tag(&self, subject: &Digest, referrer: &Descriptor) -> Result<()> {
        let mut index = self.repository.listed_under_tag(subject)?;
        if index.manifests.iter().any(|d| d.digest == referrer.digest) {
            return Ok(());
        }
        index.manifests.push(referrer.clone());
        let bytes = serde_json::to_vec(&index).map_err(|e| Error::Protocol {
            host: self.repository.registry.clone(),
            why: format!("{LIST}: {e}"),
        })?;
        let tag = tag_of(&self.repository.reference()?, subject)?;
        self.document(media_type::OCI_INDEX, &bytes, &tag).map(drop)
    }
}

fn tag_of(repository: &Reference, subject: &Digest) -> Result<Reference> {
    let hex: String = subject.hex().chars().take(64).collect();
    Ok(repository.with_tag(&format!("{}-{hex}", subject.algorithm().name()))?)
}

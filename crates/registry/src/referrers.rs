//! What refers to a manifest: signatures, attestations, bills of materials (distribution-spec, "Listing Referrers" and
//! "Referrers Tag Schema" for registries that have no such list).

use isles_spec::image::{Descriptor, Index, media_type};
use isles_spec::{Digest, Reference};
use ureq::http::header;

use crate::auth::Scope;
use crate::client::{Call, Repository};
use crate::http::{read_bounded, sentence, text_of};
use crate::manifest::MANIFEST_LIMIT;
use crate::upload::Sender;
use crate::{Error, Result, catalog, location};

const PAGES: usize = 100;

impl Repository<'_> {
    /// What has `subject` as its subject.
    pub(crate) fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let scope = Scope::of(&self.name, "pull");
        let object = format!("the referrers of {subject}");
        let mut found = Vec::new();
        let mut url = Some(self.url(&format!("referrers/{subject}"))?);
        for _ in 0..PAGES {
            let Some(page) = url.take() else { return Ok(found) };
            let call = Call::get(page.clone(), &scope, "pull", &object);
            let response = self.send(&call)?;
            match response.status().as_u16() {
                200 => {}
                400 | 404 | 405 | 501 => return Ok(self.listed_under_tag(subject)?.manifests),
                _ => return Err(self.refused(&call, response)),
            }
            let next = text_of(response.headers(), &header::LINK).and_then(catalog::next_page);
            url = next.and_then(|n| location::join(&page, n)).filter(|n| location::same_origin(n, &page));
            let bytes = read_bounded(response.into_body(), MANIFEST_LIMIT)
                .map_err(|e| self.broken(format!("listing {object}"), sentence(&e)))?;
            let bytes = bytes.ok_or_else(|| Error::TooLarge {
                host: self.registry.clone(),
                object: object.clone(),
                limit: MANIFEST_LIMIT,
            })?;
            let index: Index = serde_json::from_slice(&bytes).map_err(|e| Error::Protocol {
                host: self.registry.clone(),
                why: format!("its list of referrers: {e}"),
            })?;
            found.extend(index.manifests);
        }
        Err(Error::Protocol { host: self.registry.clone(), why: "its list of referrers does not end".into() })
    }

    fn listed_under_tag(&self, subject: &Digest) -> Result<Index> {
        match self.manifest(&tag_of(&self.reference()?, subject)?) {
            Ok(found) if media_type::is_index(&found.media_type) => serde_json::from_slice(&found.bytes)
                .map_err(|e| Error::Protocol {
                    host: self.registry.clone(),
                    why: format!("its list of referrers: {e}"),
                }),
            Ok(_) | Err(Error::NotFound { .. }) => Ok(Index {
                schema_version: 2,
                media_type: Some(media_type::OCI_INDEX.into()),
                artifact_type: None,
                manifests: Vec::new(),
                subject: None,
                annotations: Default::default(),
            }),
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
            why: format!("its list of referrers: {e}"),
        })?;
        let tag = tag_of(&self.repository.reference()?, subject)?;
        self.document(media_type::OCI_INDEX, &bytes, &tag).map(drop)
    }
}

fn tag_of(repository: &Reference, subject: &Digest) -> Result<Reference> {
    let hex: String = subject.hex().chars().take(64).collect();
    Ok(repository.with_tag(&format!("{}-{hex}", subject.algorithm().name()))?)
}

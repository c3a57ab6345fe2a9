//! What a repository holds: its tags, and their removal (distribution-spec, "Listing Tags", "Deleting").

use isles_spec::Reference;
use serde::Deserialize;
use ureq::http::Method;

use crate::auth::Scope;
use crate::client::{Call, any_in, object_name};
use crate::manifest::manifest_name;
use crate::pages::{Page, Pages};
use crate::{Client, Error, Result, location};

const PAGE: &str = "1000";
const PAGE_LIMIT: u64 = 16 << 20;
const PAGES_LIMIT: usize = 1000;

#[derive(Deserialize)]
struct TagList {
    /// `null` for a repository without tags.
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// The answer of `/v2/_catalog`.
#[derive(Deserialize)]
struct Catalog {
    #[serde(default)]
    repositories: Option<Vec<String>>,
}

impl Client {
    /// The names of a registry's repositories that `wanted` says, in the registry's order, at most `limit`.
    pub fn repositories(
        &self,
        registry: &str,
        limit: usize,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<String>> {
        let repository = self.repository(&any_in(registry)?)?;
        let list = "its list of repositories";
        let url = location::join(&repository.base, "/v2/_catalog");
        let mut pages = Pages {
            repository: &repository,
            scope: Scope::catalog(),
            operation: "list",
            object: list,
            doing: format!("reading {list}"),
            list,
            limit: PAGE_LIMIT,
            left: PAGES_LIMIT,
            next: url.and_then(|url| location::with_query(&url, "n", PAGE)),
        };
        let mut found = Vec::new();
        loop {
            let page = match pages.next::<Catalog>(&[404, 405])? {
                Page::Read(page) => page,
                Page::Absent => return Err(Error::NoCatalog { host: repository.registry.clone() }),
                Page::End => return Ok(found),
            };
            for name in page.repositories.unwrap_or_default() {
                // Only what a reference could name; the rest would garble the terminal.
                if isles_store::is_repository_name(&name) && wanted(&name) {
                    found.push(name);
                    if found.len() >= limit {
                        return Ok(found);
                    }
                }
            }
        }
    }

    /// All tags of the reference's repository, in the registry's order.
    pub fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        let repository = self.repository(reference)?;
        let object = format!("repository {}", repository.name);
        let mut pages = Pages {
            repository: &repository,
            scope: Scope::of(&repository.name, "pull"),
            operation: "list",
            object: &object,
            doing: format!("listing the tags of {object}"),
            list: "its list of tags",
            limit: PAGE_LIMIT,
            left: PAGES_LIMIT,
            next: location::with_query(&repository.url("tags/list")?, "n", PAGE),
        };
        let mut tags = Vec::new();
        while let Page::Read(page) = pages.next::<TagList>(&[])? {
            tags.extend(page.tags.unwrap_or_default());
        }
        Ok(tags)
    }

    /// Removes a tag, or with a digest the manifest and every tag that stands for it, from the registry.
    pub fn delete(&self, reference: &Reference) -> Result<()> {
        let repository = self.repository(reference)?;
        let object = object_name(reference);
        let scope = Scope::of(&repository.name, "delete,pull");
        let url = repository.url(&format!("manifests/{}", manifest_name(reference)))?;
        let call = Call::get(url, &scope, "delete", &object).method(Method::DELETE);
        let response = repository.send(&call)?;
        match response.status().as_u16() {
            200 | 202 | 204 => Ok(()),
            status @ (400 | 405) if reference.digest().is_none() => Err(Error::Refused {
                host: repository.registry.clone(),
                operation: "delete",
                object,
                status,
                message: "it removes by digest only, and then every tag of that image".into(),
            }),
            _ => Err(repository.refused(&call, response)),
        }
    }
}

//! What a repository holds: its tags, and their removal (distribution-spec, "Listing Tags", "Deleting").

use isles_spec::Reference;
use serde::Deserialize;
use ureq::http::{Method, header};

use crate::auth::Scope;
use crate::client::{Call, any_in, object_name};
use crate::http::{read_bounded, sentence, text_of};
use crate::manifest::manifest_name;
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
        let object = "its list of repositories".to_owned();
        let scope = Scope::catalog();
        let mut found = Vec::new();
        let mut url = location::join(&repository.base, "/v2/_catalog");
        url = url.and_then(|url| location::with_query(&url, "n", PAGE));
        for _ in 0..PAGES_LIMIT {
            let Some(page) = url.take() else { return Ok(found) };
            let call = Call::get(page.clone(), &scope, "list", &object);
            let response = repository.send(&call)?;
            if matches!(response.status().as_u16(), 404 | 405) {
                return Err(Error::NoCatalog { host: repository.registry.clone() });
            }
            if response.status() != 200 {
                return Err(repository.refused(&call, response));
            }
            let next = text_of(response.headers(), &header::LINK).and_then(next_page);
            url = next.and_then(|n| location::join(&page, n)).filter(|n| location::same_origin(n, &page));
            let host = || repository.registry.clone();
            let text = read_bounded(response.into_body(), PAGE_LIMIT)
                .map_err(|e| repository.broken(format!("reading {object}"), sentence(&e)))?
                .ok_or_else(|| Error::TooLarge { host: host(), object: object.clone(), limit: PAGE_LIMIT })?;
            let list: Catalog = serde_json::from_slice(&text)
                .map_err(|e| Error::Protocol { host: host(), why: format!("{object}: {e}") })?;
            for name in list.repositories.unwrap_or_default() {
                // Only what a reference could name; the rest would garble the terminal.
                let fine = isles_store::is_repository_name(&name);
                if fine && wanted(&name) {
                    found.push(name);
                    if found.len() >= limit {
                        return Ok(found);
                    }
                }
            }
        }
        let why = format!("{object} does not end");
        Err(Error::Protocol { host: repository.registry.clone(), why })
    }

    /// All tags of the reference's repository, in the registry's order.
    pub fn tags(&self, reference: &Reference) -> Result<Vec<String>> {
        let repository = self.repository(reference)?;
        let object = format!("repository {}", repository.name);
        let scope = Scope::of(&repository.name, "pull");
        let mut tags = Vec::new();
        let mut url = location::with_query(&repository.url("tags/list")?, "n", PAGE);
        for _ in 0..PAGES_LIMIT {
            let Some(page) = url.take() else { return Ok(tags) };
            let response = repository.expect(Call::get(page.clone(), &scope, "list", &object), &[200])?;
            let next = text_of(response.headers(), &header::LINK).and_then(next_page);
            url = next.and_then(|n| location::join(&page, n)).filter(|n| location::same_origin(n, &page));
            let host = || repository.registry.clone();
            let text = read_bounded(response.into_body(), PAGE_LIMIT)
                .map_err(|e| repository.broken(format!("listing the tags of {object}"), sentence(&e)))?
                .ok_or_else(|| Error::TooLarge { host: host(), object: object.clone(), limit: PAGE_LIMIT })?;
            let list: TagList = serde_json::from_slice(&text)
                .map_err(|e| Error::Protocol { host: host(), why: format!("its list of tags: {e}") })?;
            tags.extend(list.tags.unwrap_or_default());
        }
        Err(Error::Protocol {
            host: repository.registry.clone(),
            why: "its list of tags does not end".into(),
        })
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

/// The target of `<url>; rel="next"`.
pub(crate) fn next_page(link: &str) -> Option<&str> {
    link.split(',').find_map(|one| {
        let (target, parameters) = one.trim().strip_prefix('<')?.split_once('>')?;
        let next = parameters.split(';').any(|p| matches!(p.trim(), "rel=\"next\"" | "rel=next"));
        next.then_some(target)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_to_the_next_page() {
        for (link, next) in [
            (r#"</v2/a/tags/list?n=1&last=x>; rel="next""#, Some("/v2/a/tags/list?n=1&last=x")),
            (r#"<a>; rel=prev, <b>;rel=next"#, Some("b")),
            (r#"<a>; rel="prev""#, None),
            ("a; rel=next", None),
            ("", None),
        ] {
            assert_eq!(next_page(link), next, "{link}");
        }
    }
}

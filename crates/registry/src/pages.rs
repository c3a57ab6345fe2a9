//! Lists that a registry gives page by page: tags, repositories, referrers (distribution-spec, "Listing Tags").

use serde::de::DeserializeOwned;
use ureq::http::{Uri, header};

use crate::auth::Scope;
use crate::client::{Call, Repository};
use crate::http::{read_bounded, sentence, text_of};
use crate::{Error, Result, location};

/// A list that is being read.
pub(crate) struct Pages<'a> {
    pub repository: &'a Repository<'a>,
    pub scope: Scope,
    /// What is done, of what, and what the list is called, in messages.
    pub operation: &'static str,
    pub object: &'a str,
    pub doing: String,
    pub list: &'static str,
    /// Bytes of a page.
    pub limit: u64,
    /// Pages that are still read.
    pub left: usize,
    pub next: Option<Uri>,
}

/// What comes next of a list.
pub(crate) enum Page<T> {
    Read(T),
    /// The registry has no such list.
    Absent,
    End,
}

impl Pages<'_> {
    /// Reads the next page. An answer with one of the statuses `absent` says that there is no list.
    pub fn next<T: DeserializeOwned>(&mut self, absent: &[u16]) -> Result<Page<T>> {
        let Some(page) = self.next.take() else { return Ok(Page::End) };
        let host = || self.repository.registry.clone();
        let odd = |why: String| Error::Protocol { host: host(), why };
        self.left = self.left.checked_sub(1).ok_or_else(|| odd(format!("{} does not end", self.list)))?;
        let call = Call::get(page.clone(), &self.scope, self.operation, self.object);
        let response = self.repository.send(&call)?;
        match response.status().as_u16() {
            200 => {}
            status if absent.contains(&status) => return Ok(Page::Absent),
            _ => return Err(self.repository.refused(&call, response)),
        }
        let next = text_of(response.headers(), &header::LINK).and_then(next_page);
        self.next = next.and_then(|n| location::join(&page, n)).filter(|n| location::same_origin(n, &page));
        let bytes = read_bounded(response.into_body(), self.limit)
            .map_err(|e| self.repository.broken(self.doing.clone(), sentence(&e)))?;
        let (object, limit) = (self.object.to_owned(), self.limit);
        let bytes = bytes.ok_or_else(|| Error::TooLarge { host: host(), object, limit })?;
        serde_json::from_slice(&bytes).map(Page::Read).map_err(|e| odd(format!("{}: {e}", self.list)))
    }
}

/// The target of `<url>; rel="next"`.
fn next_page(link: &str) -> Option<&str> {
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

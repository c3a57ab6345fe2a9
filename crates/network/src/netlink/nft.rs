//! The firewall's own words: tables, chains, rules, maps and their elements (linux/netfilter/nf_tables.h). All of
//! its numbers are in the order of the network.

use super::message::{self, Batch, Body};

/// NFNL_SUBSYS_NFTABLES.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// NFPROTO_INET: IPv4 and IPv6 in one table.
const INET: u8 = 1;

const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const GET_CHAIN: u16 = 4;
const NEW_RULE: u16 = 6;
const NEW_SET: u16 = 9;
const NEW_ELEMENTS: u16 = 12;
const GET_ELEMENTS: u16 = 13;
const DELETE_ELEMENTS: u16 = 14;
/// Like deleting, but what is not there is no error. Since Linux 6.3.
const DESTROY_ELEMENTS: u16 = 30;

/// Types of data by which nft(8) shows elements; a concatenation has six bits for each part.
pub mod types {
    pub const FAMILY: u32 = 2;
    pub const IPV4: u32 = 7;
    pub const IPV6: u32 = 8;
    pub const PROTOCOL: u32 = 12;
    pub const PORT: u32 = 13;
    pub const DEVICE: u32 = 41;

    pub const fn concatenated(parts: &[u32]) -> u32 {
        let (mut out, mut i) = (0, 0);
        while i < parts.len() {
            out = out << 6 | parts[i];
            i += 1;
        }
        out
    }
}

/// A transaction on one table.
#[derive(Debug)]
pub struct Transaction {
    batch: Batch,
    table: &'static str,
}

/// A set, or a map where `data` is given.
#[derive(Debug, Clone, Copy)]
pub struct Set {
    pub name: &'static str,
    /// Type and bytes.
    pub key: (u32, u32),
    pub data: Option<(u32, u32)>,
    /// Elements are the beginnings of ranges, and the ends.
    pub intervals: bool,
}

/// What an element has: a key, and perhaps data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    pub key: Vec<u8>,
    pub data: Option<Vec<u8>>,
    /// The first key behind a range (NFT_SET_ELEM_INTERVAL_END).
    pub end: bool,
}

/// A base chain's place: hook, priority and kind. What no rule decides is accepted.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    pub number: u32,
    pub priority: i32,
    pub kind: &'static str,
}

/// Elements of one message; an attribute has room for 64 KiB.
const PART: usize = 400;

impl Transaction {
    pub fn new(table: &'static str) -> Transaction {
        let mut batch = Batch::transaction();
        batch.message(BATCH_BEGIN, 0, |body| {
            body.fixed(&[0, 0, 0, SUBSYSTEM as u8]);
        });
        Transaction { batch, table }
    }

    /// The messages, whole.
    pub fn finish(mut self) -> Batch {
        self.batch.message(BATCH_END, 0, |body| {
            body.fixed(&[0, 0, 0, SUBSYSTEM as u8]);
        });
        self.batch
    }

    fn add(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Body<'_>)) {
        let table = self.table;
        self.batch.command(SUBSYSTEM << 8 | kind, flags, |b| {
            body(b.fixed(&[INET, 0, 0, 0]).text(1, table));
        });
    }

    pub fn table(&mut self) {
        self.add(NEW_TABLE, message::CREATE, |_| {});
    }

    /// The table, which may not be there yet.
    pub fn new_table(&mut self) {
        self.add(NEW_TABLE, message::CREATE | message::EXCLUSIVE, |_| {});
    }

    /// Removes the table with all that is in it, which must be there.
    pub fn delete_table(&mut self) {
        self.add(DELETE_TABLE, 0, |_| {});
    }

    pub fn chain(&mut self, name: &str, hook: Option<Hook>) {
        self.add(NEW_CHAIN, message::CREATE, |body| {
            body.text(3, name);
            if let Some(hook) = hook {
                body.nested(4, |h| {
                    h.network_number(1, hook.number).network_number(2, hook.priority.cast_unsigned());
                });
                // NF_ACCEPT.
                body.network_number(5, 1).text(7, hook.kind);
            }
        });
    }

    pub fn rule(&mut self, chain: &str, rule: &Rule) {
        self.add(NEW_RULE, message::CREATE | message::APPEND, |body| {
            body.text(2, chain).nested(4, |list| rule.write(list));
        });
    }

    pub fn set(&mut self, set: &Set) {
        const INTERVAL: u32 = 4;
        const MAP: u32 = 8;
        self.add(NEW_SET, message::CREATE, |body| {
            let flags = if set.data.is_some() { MAP } else { 0 } | if set.intervals { INTERVAL } else { 0 };
            body.text(2, set.name).network_number(3, flags);
            body.network_number(4, set.key.0).network_number(5, set.key.1);
            if let Some((kind, length)) = set.data {
                body.network_number(6, kind).network_number(7, length);
            }
            // Any number will do: it stands for the set within the transaction only.
            body.network_number(10, 1);
        });
    }

    /// Adds elements, none of which may be there yet.
    pub fn elements(&mut self, set: &str, elements: &[Element]) {
        self.list(NEW_ELEMENTS, message::CREATE | message::EXCLUSIVE, set, elements);
    }

    /// Adds elements; those that are there already are no error.
    pub fn known_elements(&mut self, set: &str, elements: &[Element]) {
        self.list(NEW_ELEMENTS, message::CREATE, set, elements);
    }

    /// Removes elements. `all_there`: one that is not there fails the whole, as kernels before 6.3 have it.
    pub fn remove_elements(&mut self, set: &str, elements: &[Element], all_there: bool) {
        self.list(if all_there { DELETE_ELEMENTS } else { DESTROY_ELEMENTS }, 0, set, elements);
    }

    fn list(&mut self, kind: u16, flags: u16, set: &str, elements: &[Element]) {
        for part in elements.chunks(PART) {
            self.add(kind, flags, |body| {
                body.text(2, set).nested(3, |list| {
                    for element in part {
                        list.nested(1, |e| element.write(e));
                    }
                });
            });
        }
    }
}

/// Asks whether a table is there.
pub fn ask_table(table: &str) -> Batch {
    let mut batch = Batch::new();
    batch.command(SUBSYSTEM << 8 | GET_TABLE, 0, |body| {
        body.fixed(&[INET, 0, 0, 0]).text(1, table);
    });
    batch
}

/// Asks whether a set has an element.
pub fn ask_element(table: &str, set: &str, element: &Element) -> Batch {
    let mut batch = Batch::new();
    batch.command(SUBSYSTEM << 8 | GET_ELEMENTS, 0, |body| {
        body.fixed(&[INET, 0, 0, 0]).text(1, table).text(2, set).nested(3, |list| {
            list.nested(1, |e| element.write(e));
        });
    });
    batch
}

/// Asks for all chains of all tables.
pub fn ask_chains() -> Batch {
    let mut batch = Batch::new();
    batch.message(SUBSYSTEM << 8 | GET_CHAIN, message::DUMP, |body| {
        body.fixed(&[0; 4]);
    });
    batch
}

/// What an answer to [`ask_chains`] says.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    pub table: String,
    /// It sees packets of IPv4.
    pub ipv4: bool,
    /// The number of the hook, and whether a packet that no rule decides is dropped.
    pub hook: Option<(u32, bool)>,
}

impl Chain {
    pub fn read(body: &[u8]) -> Option<Chain> {
        const IPV4: u8 = 2;
        let number = |bytes: &[u8]| Some(u32::from_be_bytes(*bytes.first_chunk()?));
        let family = *body.first()?;
        let attributes = body.get(4..)?;
        let hook = message::attribute(attributes, 4).and_then(|hook| number(message::attribute(hook, 1)?));
        let policy = message::attribute(attributes, 5).and_then(number);
        Some(Chain {
            table: message::text(message::attribute(attributes, 1)?),
            ipv4: family == IPV4 || family == INET,
            hook: hook.map(|hook| (hook, policy == Some(0))),
        })
    }
}

impl Element {
    pub fn key(key: Vec<u8>) -> Element {
        Element { key, data: None, end: false }
    }

    fn write(&self, body: &mut Body<'_>) {
        body.nested(1, |key| {
            key.attribute(1, &self.key);
        });
        if let Some(data) = &self.data {
            body.nested(2, |value| {
                value.attribute(1, data);
            });
        }
        if self.end {
            body.network_number(3, 1);
        }
    }
}

/// Registers of 16 bytes begin at 1, those of 4 bytes at 8; both are the same memory.
pub const REGISTER: u32 = 1;
const SMALL: u32 = 8;
/// What a rule does with a packet in the end.
#[derive(Debug, Clone, Copy)]
pub enum Verdict {
    Drop,
    Accept,
    Jump(&'static str),
}

/// A rule: conditions from left to right, and what happens when all hold.
#[derive(Debug, Default)]
pub struct Rule {
    expressions: Vec<(&'static str, Vec<u8>)>,
}

/// Keys of `meta`.
#[derive(Debug, Clone, Copy)]
pub enum Meta {
    InDevice = 6,
    OutDevice = 7,
    /// IPv4 is 2, IPv6 is 10.
    Family = 15,
    Transport = 16,
}

/// A part of a packet.
#[derive(Debug, Clone, Copy)]
pub enum Field {
    Source4,
    Destination4,
    Source6,
    Destination6,
    DestinationPort,
}

impl Field {
    /// The header (network 1, transport 2), the offset in it, and the length.
    fn place(self) -> (u32, u32, u32) {
        match self {
            Field::Source4 => (1, 12, 4),
            Field::Destination4 => (1, 16, 4),
            Field::Source6 => (1, 8, 16),
            Field::Destination6 => (1, 24, 16),
            Field::DestinationPort => (2, 2, 2),
        }
    }
}

impl Rule {
    pub fn new() -> Rule {
        Rule::default()
    }

    fn with(mut self, name: &'static str, body: impl FnOnce(&mut Body<'_>)) -> Rule {
        self.expressions.push((name, message::inner(body)));
        self
    }

    /// Loads into the `slot`th register of four bytes.
    pub fn meta(self, key: Meta, slot: u32) -> Rule {
        self.with("meta", |b| {
            b.network_number(1, SMALL + slot).network_number(2, key as u32);
        })
    }

    /// Loads into the `slot`th register of four bytes.
    pub fn field(self, field: Field, slot: u32) -> Rule {
        let (base, offset, length) = field.place();
        self.with("payload", |b| {
            b.network_number(1, SMALL + slot).network_number(2, base);
            b.network_number(3, offset).network_number(4, length);
        })
    }

    /// The first register is these bytes.
    pub fn is(self, value: &[u8]) -> Rule {
        self.compare(0, value)
    }

    /// The first register is not these bytes.
    pub fn is_not(self, value: &[u8]) -> Rule {
        self.compare(1, value)
    }

    fn compare(self, operation: u32, value: &[u8]) -> Rule {
        self.with("cmp", |b| {
            b.network_number(1, REGISTER).network_number(2, operation).nested(3, |data| {
                data.attribute(1, value);
            });
        })
    }

    /// The first register's bits.
    pub fn masked(self, mask: &[u8]) -> Rule {
        self.with("bitwise", |b| {
            b.network_number(1, REGISTER).network_number(2, REGISTER);
            b.network_number(3, mask.len() as u32);
            b.nested(4, |data| {
                data.attribute(1, mask);
            });
            b.nested(5, |data| {
                data.attribute(1, &vec![0; mask.len()]);
            });
        })
    }

    /// The packet is of IPv4, or of IPv6.
    pub fn family(self, ipv6: bool) -> Rule {
        self.meta(Meta::Family, 0).is(&[if ipv6 { 10 } else { 2 }])
    }

    /// The registers from the first on are in the set, or not.
    pub fn among(self, set: &str, wanted: bool) -> Rule {
        self.with("lookup", |b| {
            b.text(1, set).network_number(2, REGISTER);
            if !wanted {
                b.network_number(5, 1);
            }
        })
    }

    /// Looks the registers from the first on up in a map, whose data takes their place.
    pub fn mapped(self, map: &str) -> Rule {
        self.with("lookup", |b| {
            b.text(1, map).network_number(2, REGISTER).network_number(3, REGISTER);
        })
    }

    /// The connection is established, or belongs to one that is.
    pub fn established(self) -> Rule {
        const ESTABLISHED_RELATED: u32 = 2 | 4;
        self.connection(0).masked(&ESTABLISHED_RELATED.to_ne_bytes()).is_not(&[0; 4])
    }

    /// The connection's destination was changed: it goes to a published port.
    pub fn published(self) -> Rule {
        /// IPS_DST_NAT.
        const DESTINATION_CHANGED: u32 = 1 << 5;
        self.connection(2).masked(&DESTINATION_CHANGED.to_ne_bytes()).is_not(&[0; 4])
    }

    fn connection(self, key: u32) -> Rule {
        self.with("ct", |b| {
            b.network_number(1, REGISTER).network_number(2, key);
        })
    }

    /// The packet's destination is an address of the host.
    pub fn to_host(self) -> Rule {
        /// RTN_LOCAL.
        const LOCAL: u32 = 2;
        self.with("fib", |b| {
            // NFT_FIB_RESULT_ADDRTYPE of NFTA_FIB_F_DADDR.
            b.network_number(1, REGISTER).network_number(2, 3).network_number(3, 2);
        })
        .is(&LOCAL.to_ne_bytes())
    }

    /// Sends the connection to the address and port in the registers from the first on.
    pub fn destination(self, ipv6: bool) -> Rule {
        self.with("nat", |b| {
            b.network_number(1, 1).network_number(2, if ipv6 { 10 } else { 2 });
            b.network_number(3, SMALL).network_number(5, SMALL + if ipv6 { 4 } else { 1 });
        })
    }

    /// The connection has the address of the device that it leaves by as its source.
    pub fn masquerade(self) -> Rule {
        self.with("masq", |_| {})
    }

    pub fn verdict(self, verdict: Verdict) -> Rule {
        let (code, chain) = match verdict {
            Verdict::Drop => (0i32, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
        };
        self.with("immediate", |b| {
            b.network_number(1, 0).nested(2, |data| {
                data.nested(2, |verdict| {
                    verdict.network_number(1, code.cast_unsigned());
                    if let Some(chain) = chain {
                        verdict.text(2, chain);
                    }
                });
            });
        })
    }

    fn write(&self, list: &mut Body<'_>) {
        for (name, data) in &self.expressions {
            list.nested(1, |expression| {
                expression.text(1, name).nested(2, |inner| {
                    inner.raw(data);
                });
            });
        }
    }
}

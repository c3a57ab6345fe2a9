//! From a profile to classic BPF: one balanced tree over number ranges per `seccomp_data.arch`.
//!
//! The verdicts are libseccomp's: a rule without conditions beats all conditional ones of its call, among
//! several of either kind the first wins, rules equal to the default say nothing, conditions that name
//! one argument twice are alternatives (as runc and crun have it), socketcall(2) and ipc(2) of i386 follow the
//! calls they carry, interfaces with 32-bit registers compare the low half only. Two additions: numbers
//! above all that the profile can know fail with ENOSYS where the default would refuse them, and so does
//! clone3(2), whose flags no filter can see, where clone(2) is filtered by its flags and clone3 not mentioned. Where the kernel
//! has no x32, all calls of x32 fail with ENOSYS as they would without a filter: that is a third of a program which the
//! kernel compiles for each container.

use isles_spec::{Error, Result};

use super::profile::{Action, Compare, Condition, Profile, Rule};
use super::{Arch, Bpf, syscalls};

/// BPF_MAXINSNS of the kernel.
const MAX_INSTRUCTIONS: usize = 4096;

/// Set in the numbers of x32.
const X32_BIT: u32 = 0x4000_0000;

const ENOSYS: Action = Action::Errno(libc::ENOSYS as u16);

/// Offsets in `seccomp_data`.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGS: u32 = 16;

/// Turns a profile into a program for the kernel that runs here.
///
/// # Errors
/// When the program would be longer than the kernel takes.
pub fn compile(profile: &Profile) -> Result<Bpf> {
    compile_for(profile, x32_may_exist())
}

/// Turns a profile into a program; `x32` is whether a kernel may have that interface.
pub(super) fn compile_for(profile: &Profile, x32: bool) -> Result<Bpf> {
    let rules = Resolved { rules: resolve(&profile.rules), overrides: resolve(&profile.overrides) };
    let mut code = vec![load(DATA_ARCH)];
    let mut done: Vec<u32> = Vec::new();
    for arch in &profile.arches {
        if done.contains(&arch.audit()) {
            continue;
        }
        done.push(arch.audit());
        let mut section = vec![load(DATA_NR)];
        section.extend(tree(ranges(profile, &rules, arch.audit(), x32)));
        // Few sections are short enough for the eight bits of a conditional jump.
        code.push(jump(libc::BPF_JEQ, arch.audit(), 1, 0));
        code.push(statement(libc::BPF_JMP | libc::BPF_JA, section.len() as u32));
        code.extend(section);
    }
    code.push(ret(Action::KillThread));
    if code.len() > MAX_INSTRUCTIONS {
        return Err(Error::new(format!(
            "the seccomp profile needs {} instructions; the kernel takes {MAX_INSTRUCTIONS}",
            code.len()
        ))
        .with_hint("use fewer conditions on arguments"));
    }
    Ok(Bpf::new(code, profile.flags, profile.listens()))
}

/// Whether the kernel may have the x32 interface. Few have (CONFIG_X86_X32_ABI), and where a filter is in force already, which
/// might kill who asks, nobody asks.
fn x32_may_exist() -> bool {
    // SAFETY: neither call has an effect, whatever its result.
    unsafe {
        libc::prctl(libc::PR_GET_SECCOMP) != 0
            || libc::syscall((X32_BIT | libc::SYS_getpid as u32).into()) != -1
    }
}

/// Whether calls of an interface that the kernel lacks may fail as they do without a filter. Where some are to be seen by
/// others, or to end the process, all are.
fn may_be_missing(profile: &Profile) -> bool {
    let silent = |action: Action| matches!(action, Action::Errno(_) | Action::Allow);
    let rules = profile.rules.iter().chain(&profile.overrides);
    matches!(profile.default_action, Action::Errno(_)) && rules.into_iter().all(|rule| silent(rule.action))
}

/// The rules with the numbers of their calls.
struct Resolved<'a> {
    rules: Vec<(&'a Rule, Vec<Call>)>,
    overrides: Vec<(&'a Rule, Vec<Call>)>,
}

/// The numbers of one name on every interface.
struct Call {
    numbers: Option<&'static [i16; 4]>,
    /// The multiplexer of i386 that carries it, and its number there.
    carried: Option<(u32, u32)>,
}

fn resolve(rules: &[Rule]) -> Vec<(&Rule, Vec<Call>)> {
    rules.iter().map(|rule| (rule, rule.names.iter().map(|name| Call::named(name)).collect())).collect()
}

impl Call {
    fn named(name: &str) -> Call {
        let carrier = |name| syscalls::numbers(name).map_or(0, |n| n[syscalls::I386] as u32);
        let carried = match (syscalls::socketcall(name), syscalls::ipc(name)) {
            (Some(call), _) => Some((carrier("socketcall"), call)),
            (_, Some(call)) => Some((carrier("ipc"), call)),
            _ => None,
        };
        Call { numbers: syscalls::numbers(name), carried }
    }

    /// Calls `on` with the number on this interface, and with that of the multiplexer where one carries it.
    fn each(&self, arch: Arch, on: &mut dyn FnMut(u32, Option<u32>)) {
        if let Some(nr) = self.numbers.and_then(|n| u32::try_from(n[arch.column()]).ok()) {
            on(nr, None);
        }
        if let (Arch::X86, Some((carrier, call))) = (arch, self.carried) {
            on(carrier, Some(call));
        }
    }
}

/// What is to happen to one number.
#[derive(Clone, PartialEq)]
enum Verdict {
    Plain(Action),
    /// The first alternative whose conditions hold, else the last action.
    Tested(Vec<(Vec<Condition>, Action)>, Action),
}

/// A verdict from this number on, with whether arguments have 64 bits.
struct Range {
    start: u32,
    verdict: Verdict,
    wide: bool,
}

/// All numbers of the interfaces that share `audit`, in order, neighbours with one verdict merged.
fn ranges(profile: &Profile, rules: &Resolved<'_>, audit: u32, x32: bool) -> Vec<Range> {
    let mut out: Vec<Range> = Vec::with_capacity(128);
    let mut add = |start: u32, verdict: Verdict, wide: bool| {
        if out.last().is_none_or(|last| last.verdict != verdict || (last.wide != wide && verdict.is_tested()))
        {
            out.push(Range { start, verdict, wide });
        }
    };
    let default = Verdict::Plain(profile.default_action);
    for arch in profile.arches.iter().filter(|a| a.audit() == audit && **a != Arch::X32) {
        let (calls, beyond) = verdicts(profile, rules, *arch);
        let count = calls.len() as u32;
        for (nr, verdict) in calls.into_iter().enumerate() {
            add(nr as u32, verdict, arch.wide());
        }
        add(count, Verdict::Plain(beyond), arch.wide());
    }
    if audit == Arch::X86_64.audit() {
        let contained = profile.arches.contains(&Arch::X32);
        if contained && !x32 && may_be_missing(profile) {
            add(X32_BIT, Verdict::Plain(ENOSYS), false);
        } else if contained {
            let (calls, beyond) = verdicts(profile, rules, Arch::X32);
            let count = calls.len() as u32;
            for (nr, verdict) in calls.into_iter().enumerate() {
                add(X32_BIT + nr as u32, verdict, false);
            }
            add(X32_BIT + count, Verdict::Plain(beyond), false);
        } else {
            add(X32_BIT, Verdict::Plain(Action::KillThread), false);
        }
    }
    // A tracer that skips a call sets its number to -1.
    add(u32::MAX, default, false);
    out
}

/// The verdict of each number from 0 up to the youngest known, and that of all above.
fn verdicts(profile: &Profile, rules: &Resolved<'_>, arch: Arch) -> (Vec<Verdict>, Action) {
    let default = profile.default_action;
    let mut calls: Vec<Verdict> = vec![Verdict::Plain(default); syscalls::BASELINE as usize + 1];
    let mut decided: Vec<bool> = vec![false; calls.len()];
    for (rule, named) in &rules.rules {
        let mut apply = |nr: u32, multiplexed: Option<u32>| {
            let nr = nr as usize;
            if nr >= calls.len() {
                calls.resize(nr + 1, Verdict::Plain(default));
                decided.resize(nr + 1, false);
            }
            if rule.action == default || decided[nr] {
                return;
            }
            let groups = alternatives(&rule.conditions, multiplexed);
            if groups.is_empty() {
                calls[nr] = Verdict::Plain(rule.action);
                decided[nr] = true;
            } else {
                if matches!(calls[nr], Verdict::Plain(_)) {
                    calls[nr] = Verdict::Tested(Vec::new(), default);
                }
                if let Verdict::Tested(tests, _) = &mut calls[nr] {
                    tests.extend(groups.into_iter().map(|g| (g, rule.action)));
                }
            }
        };
        named.iter().for_each(|call| call.each(arch, &mut apply));
    }
    hide_clone3(profile, arch, &mut calls);
    for (rule, named) in rules.overrides.iter().rev() {
        let mut apply = |nr: u32, multiplexed: Option<u32>| {
            let Some(call) = calls.get_mut(nr as usize) else { return };
            let groups = alternatives(&rule.conditions, multiplexed);
            if groups.is_empty() {
                *call = Verdict::Plain(rule.action);
                return;
            }
            let mut tests: Vec<_> = groups.into_iter().map(|g| (g, rule.action)).collect();
            *call = match call.clone() {
                Verdict::Plain(otherwise) => Verdict::Tested(tests, otherwise),
                Verdict::Tested(rest, otherwise) => {
                    tests.extend(rest);
                    Verdict::Tested(tests, otherwise)
                }
            };
        };
        named.iter().for_each(|call| call.each(arch, &mut apply));
    }
    (calls, if default.refuses() { ENOSYS } else { default })
}

/// The groups of conditions of which one must hold as a whole; none for a rule without conditions.
fn alternatives(conditions: &[Condition], multiplexed: Option<u32>) -> Vec<Vec<Condition>> {
    let repeats = conditions
        .iter()
        .enumerate()
        .any(|(i, c)| conditions[..i].iter().any(|earlier| earlier.index == c.index));
    let mut groups: Vec<Vec<Condition>> = match conditions {
        [] => Vec::new(),
        many if repeats => many.iter().map(|c| vec![*c]).collect(),
        all => vec![all.to_vec()],
    };
    if let Some(call) = multiplexed {
        // The carried call's own arguments are in memory, where no filter can see them.
        let carried = Condition { index: 0, compare: Compare::Eq, value: u64::from(call) };
        if groups.is_empty() {
            groups.push(Vec::new());
        }
        for group in &mut groups {
            group.retain(|c| c.index != 0);
            group.insert(0, carried);
        }
    }
    groups
}

/// Gives clone3 ENOSYS where clone is filtered by its arguments and the profile has no word on clone3.
fn hide_clone3(profile: &Profile, arch: Arch, calls: &mut [Verdict]) {
    let number = |name| syscalls::numbers(name).map(|n| n[arch.column()] as usize);
    let (Some(clone), Some(clone3)) = (number("clone"), number("clone3")) else { return };
    let mentioned = profile.rules.iter().any(|r| r.names.iter().any(|n| n == "clone3"));
    if !mentioned && calls[clone].is_tested() {
        calls[clone3] = Verdict::Plain(ENOSYS);
    }
}

impl Verdict {
    fn is_tested(&self) -> bool {
        matches!(self, Verdict::Tested(..))
    }
}

/// How many single numbers with another verdict a leaf may test before it returns its own.
const MAX_EXCEPTIONS: usize = 3;

/// Neighbouring numbers with one verdict, but for a few.
struct Leaf {
    start: u32,
    verdict: Verdict,
    wide: bool,
    exceptions: Vec<(u32, Verdict)>,
}

/// Takes single numbers into the range around them: one test instead of two branches of the tree.
fn leaves(ranges: Vec<Range>) -> Vec<Leaf> {
    let mut out: Vec<Leaf> = Vec::with_capacity(ranges.len());
    let mut rest = ranges.into_iter().peekable();
    while let Some(range) = rest.next() {
        if let (Some(around), Some(next)) = (out.last_mut(), rest.peek()) {
            let single = next.start == range.start + 1 && !range.verdict.is_tested();
            let enclosed = next.verdict == around.verdict && !next.verdict.is_tested();
            if single && enclosed && around.exceptions.len() < MAX_EXCEPTIONS {
                around.exceptions.push((range.start, range.verdict));
                rest.next();
                continue;
            }
        }
        out.push(Leaf {
            start: range.start,
            verdict: range.verdict,
            wide: range.wide,
            exceptions: Vec::new(),
        });
    }
    out
}

/// A balanced tree of comparisons whose leaves return. The number is in the accumulator.
fn tree(ranges: Vec<Range>) -> Vec<libc::sock_filter> {
    let mut code = Backwards::default();
    let entry = code.node(&leaves(ranges));
    code.reach(entry, 0);
    code.reversed.reverse();
    code.reversed
}

/// A program written from its end, so that branches share the returns that they have in reach.
#[derive(Default)]
struct Backwards {
    reversed: Vec<libc::sock_filter>,
    /// Where a return of an action was written last.
    returns: Vec<(Action, usize)>,
}

impl Backwards {
    /// How far a return may be away to be shared: less than eight bits, with room for a branch before it.
    const REACH: usize = 200;

    fn push(&mut self, instruction: libc::sock_filter) -> usize {
        self.reversed.push(instruction);
        self.reversed.len() - 1
    }

    /// How many instructions a jump that is written next skips to arrive at `target`.
    fn distance(&self, target: usize) -> usize {
        self.reversed.len() - target - 1
    }

    /// A place at most `distance` away from what is written next, from which `target` is reached.
    fn reach(&mut self, target: usize, distance: usize) -> usize {
        match self.distance(target) {
            near if near <= distance => target,
            far => self.push(statement(libc::BPF_JMP | libc::BPF_JA, far as u32)),
        }
    }

    fn ret(&mut self, action: Action) -> usize {
        let known = self.returns.iter().position(|(a, _)| *a == action);
        if let Some(at) = known.map(|i| self.returns[i].1).filter(|at| self.distance(*at) < Self::REACH) {
            return at;
        }
        let at = self.push(ret(action));
        match known {
            Some(i) => self.returns[i].1 = at,
            None => self.returns.push((action, at)),
        }
        at
    }

    fn verdict(&mut self, verdict: &Verdict, wide: bool) -> usize {
        match verdict {
            Verdict::Plain(action) => self.ret(*action),
            Verdict::Tested(tests, otherwise) => {
                self.reversed.extend(tested(tests, *otherwise, wide).into_iter().rev());
                self.reversed.len() - 1
            }
        }
    }

    fn branch(&mut self, test: u32, k: u32, yes: usize, no: usize) -> usize {
        // The second trampoline, where one is needed, moves the first target by one.
        let yes = self.reach(yes, usize::from(u8::MAX) - 1);
        let no = self.reach(no, usize::from(u8::MAX));
        let (jt, jf) = (self.distance(yes), self.distance(no));
        self.push(jump(test, k, jt as u8, jf as u8))
    }

    fn node(&mut self, leaves: &[Leaf]) -> usize {
        match leaves {
            [] => self.ret(Action::KillThread),
            [leaf] => {
                let mut entry = self.verdict(&leaf.verdict, leaf.wide);
                for (nr, verdict) in leaf.exceptions.iter().rev() {
                    let other = self.verdict(verdict, leaf.wide);
                    entry = self.branch(libc::BPF_JEQ, *nr, other, entry);
                }
                entry
            }
            _ => {
                let (low, high) = leaves.split_at(leaves.len() / 2);
                let above = self.node(high);
                let below = self.node(low);
                self.branch(libc::BPF_JGE, high[0].start, above, below)
            }
        }
    }
}

/// The alternatives one after the other.
fn tested(tests: &[(Vec<Condition>, Action)], otherwise: Action, wide: bool) -> Vec<libc::sock_filter> {
    let mut code = Vec::new();
    for (conditions, action) in tests {
        // Built from the end, so that the distance to the next alternative is known.
        let mut block = vec![ret(*action)];
        for condition in conditions.iter().rev() {
            let mut all = comparison(condition, wide, block.len());
            all.append(&mut block);
            block = all;
        }
        code.extend(block);
    }
    code.push(ret(otherwise));
    code
}

/// Falls through to the next instruction where the condition holds; else jumps over `skip` instructions more.
///
/// `skip` is at most six comparisons and a return, far below the 255 that a jump can span.
fn comparison(condition: &Condition, wide: bool, skip: usize) -> Vec<libc::sock_filter> {
    let low = DATA_ARGS + 8 * u32::from(condition.index);
    let (value_low, value_high) = (condition.value as u32, (condition.value >> 32) as u32);
    let skip = skip as u8;
    let mut code = Vec::with_capacity(6);
    match condition.compare {
        Compare::Eq => {
            if wide {
                code.extend([load(low + 4), jump(libc::BPF_JEQ, value_high, 0, skip + 2)]);
            }
            code.extend([load(low), jump(libc::BPF_JEQ, value_low, 0, skip)]);
        }
        Compare::MaskedEq { mask } => {
            let and = |m: u32| statement(libc::BPF_ALU | libc::BPF_AND, m);
            let (mask_low, mask_high) = (mask as u32, (mask >> 32) as u32);
            if wide {
                let test = jump(libc::BPF_JEQ, value_high & mask_high, 0, skip + 3);
                code.extend([load(low + 4), and(mask_high), test]);
            }
            code.extend([load(low), and(mask_low), jump(libc::BPF_JEQ, value_low & mask_low, 0, skip)]);
        }
        Compare::Ne => {
            if wide {
                code.extend([load(low + 4), jump(libc::BPF_JEQ, value_high, 0, 2)]);
            }
            code.extend([load(low), jump(libc::BPF_JEQ, value_low, skip, 0)]);
        }
        // Greater is decided by the high half alone where it differs.
        Compare::Gt | Compare::Ge => {
            let test = if condition.compare == Compare::Gt { libc::BPF_JGT } else { libc::BPF_JGE };
            if wide {
                let equal = jump(libc::BPF_JEQ, value_high, 0, skip + 2);
                code.extend([load(low + 4), jump(libc::BPF_JGT, value_high, 3, 0), equal]);
            }
            code.extend([load(low), jump(test, value_low, 0, skip)]);
        }
        Compare::Lt | Compare::Le => {
            let test = if condition.compare == Compare::Lt { libc::BPF_JGE } else { libc::BPF_JGT };
            if wide {
                let equal = jump(libc::BPF_JEQ, value_high, 0, 2);
                code.extend([load(low + 4), jump(libc::BPF_JGT, value_high, skip + 3, 0), equal]);
            }
            code.extend([load(low), jump(test, value_low, skip, 0)]);
        }
    }
    code
}

fn statement(code: u32, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: 0, jf: 0, k }
}

fn load(offset: u32) -> libc::sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn ret(action: Action) -> libc::sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action.value())
}

fn jump(test: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: (libc::BPF_JMP | test | libc::BPF_K) as u16, jt, jf, k }
}

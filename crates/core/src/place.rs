//! Which node owns a VM.
//!
//! Hard filters first ([`refuse`]), each with its reason in words; then a [`Score`] whose field order is the policy and whose
//! last field is the name, so that it is total and repeatable. One host and a cluster run the same code: a single host is a
//! choice of one.
//!
//! ```text
//!  records ──► Need (what one VM asks for) ─┐
//!  facts, node records ──► Fleet (nodes, guests, sums, index of labels) ──► choose │ explain │ capacity │ simulate │ balance
//! ```
//! The [`Fleet`] is kept current change by change: a choice looks at each node once and at no other VM than those that a rule
//! names. What it does not know (an agent that tells no CPU models) refuses nothing.

pub mod balance;
pub mod baseline;
pub mod capacity;
pub mod cpu;
pub mod fleet;
pub mod leave;
pub mod need;
pub mod refuse;
pub mod rules;
pub mod score;
pub mod simulate;
#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;

use vmkeep_types::name::Name;

pub use fleet::{Fleet, Seat};
pub use need::{Guest, HoldsVolumes, Need};
pub use refuse::{Refusal, words};
pub use score::Score;

use rules::Neighbours;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    Node(Name),
    /// Nowhere, and why, node by node in order of name.
    Blocked(Vec<(Name, Refusal)>),
}

/// What one node is for one VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub node: Name,
    /// The first reason that keeps it from the VM, or how well it would do.
    pub fits: Result<Score, Refusal>,
}

/// Picks the node for one VM.
pub fn choose(fleet: &Fleet, guest: &Guest) -> Choice {
    let neighbours = Neighbours::of(fleet, guest);
    let best = fleet
        .seats()
        .filter(|seat| refuse::refuse(fleet, seat, guest, &neighbours).is_none())
        .map(|seat| score::score(fleet, seat, guest, &neighbours))
        .min();
    match best {
        Some(score) => Choice::Node(score.node),
        None => Choice::Blocked(explain(fleet, guest).into_iter().filter_map(|v| Some((v.node, v.fits.err()?))).collect()),
    }
}

/// Every node with its verdict: those that would do first, the best one at the top, then the others by name.
pub fn explain(fleet: &Fleet, guest: &Guest) -> Vec<Verdict> {
    let neighbours = Neighbours::of(fleet, guest);
    let mut verdicts: Vec<Verdict> = fleet.seats().map(|seat| verdict(fleet, seat, guest, &neighbours)).collect();
    sort(&mut verdicts);
    verdicts
}

fn verdict(fleet: &Fleet, seat: &Seat, guest: &Guest, neighbours: &Neighbours) -> Verdict {
    let fits = match refuse::refuse(fleet, seat, guest, neighbours) {
        Some(refusal) => Err(refusal),
        None => Ok(score::score(fleet, seat, guest, neighbours)),
    };
    Verdict { node: seat.name.clone(), fits }
}

fn sort(verdicts: &mut [Verdict]) {
    verdicts.sort_by(|a, b| match (&a.fits, &b.fits) {
        (Ok(a), Ok(b)) => a.cmp(b),
        (Ok(_), Err(_)) => std::cmp::Ordering::Less,
        (Err(_), Ok(_)) => std::cmp::Ordering::Greater,
        (Err(_), Err(_)) => a.node.cmp(&b.node),
    });
}

//! Where the VMs of a node go that is being emptied.
//!
//! A strict rule that keeps some of them together would let none go first: whom it means is still on the node. As all leave,
//! nobody is held there; the first goes only where every one of them fits, and the others follow it, held by that same rule.

use vmkeep_types::name::Name;

use super::fleet::Fleet;
use super::need::{Guest, Home};
use super::refuse::{self, Refusal};
use super::rules::{Neighbours, inseparable};
use super::{Verdict, sort, verdict};

/// VMs on `from` that strict rules keep together with this one, as far as they are not on their way yet; itself left out.
pub fn followers<'f>(fleet: &'f Fleet, guest: &Guest, from: &Name) -> Vec<&'f Guest> {
    let owned = fleet.seat(from).into_iter().flat_map(|seat| &seat.owned).filter(|id| fleet.heir(**id).is_none());
    let mut left: Vec<&Guest> = owned.filter_map(|id| fleet.guest(*id)).filter(|other| other.id != guest.id).collect();
    let mut found: Vec<&Guest> = Vec::new();
    let mut looked = 0;
    let mut of = guest;
    loop {
        let (with, without): (Vec<_>, Vec<_>) = left.into_iter().partition(|other| inseparable(of, other));
        found.extend(with);
        left = without;
        match found.get(looked) {
            Some(next) => (of, looked) = (next, looked + 1),
            None => return found,
        }
    }
}

/// A strict rule keeps it together with one that has left or is about to: it goes before others take the room there.
pub fn follows<'f>(guest: &Guest, mut gone: impl Iterator<Item = &'f Guest>) -> bool {
    gone.any(|one| inseparable(one, guest))
}

/// Every node but `from` with its verdict for a VM that leaves `from` with the data of its disks: those that would do first.
pub fn explain(fleet: &Fleet, guest: &Guest, from: &Name) -> Vec<Verdict> {
    let neighbours = Neighbours::of(fleet, guest).leaving(fleet, from);
    let others = fleet.seats().filter(|seat| seat.name != *from);
    let mut verdicts: Vec<Verdict> = others.map(|seat| verdict(fleet, seat, guest, &neighbours)).collect();
    let group: Vec<Guest> = followers(fleet, guest, from).into_iter().map(unbound).collect();
    if !group.is_empty() {
        let mut trial = fleet.clone();
        group.iter().for_each(|follower| trial.set_guest(follower.clone()));
        for verdict in verdicts.iter_mut().filter(|verdict| verdict.fits.is_ok()) {
            if let Some(why) = left_behind(&mut trial, guest, &group, from, &verdict.node) {
                verdict.fits = Err(why);
            }
        }
    }
    sort(&mut verdicts);
    verdicts
}

/// Its data goes along.
fn unbound(guest: &Guest) -> Guest {
    let mut free = guest.clone();
    free.need.home = Home::Anywhere;
    free
}

/// The first of the group that could not follow to a node, and why. Puts back what it tries.
fn left_behind(trial: &mut Fleet, guest: &Guest, group: &[Guest], from: &Name, to: &Name) -> Option<Refusal> {
    let mut why = None;
    trial.set_heir(guest.id, Some(to));
    for follower in group {
        let neighbours = Neighbours::of(trial, follower).leaving(trial, from);
        let refusal = trial.seat(to).and_then(|seat| refuse::refuse(trial, seat, follower, &neighbours));
        if let Some(refusal) = refusal {
            why = Some(Refusal::Follower { vm: follower.name.clone(), why: Box::new(refusal) });
            break;
        }
        trial.set_heir(follower.id, Some(to));
    }
    group.iter().map(|follower| follower.id).chain([guest.id]).for_each(|id| trial.set_heir(id, None));
    why
}

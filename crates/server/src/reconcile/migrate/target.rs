//! Which node a VM moves to.

use vmkeep_core::migrate::check::{self, Baggage};
use vmkeep_core::place::need::Home;
use vmkeep_core::place::{self, Need, Refusal};
use vmkeep_types::error::{Code, Error};
use vmkeep_types::migration::Travel;
use vmkeep_types::name::Name;

use super::{Going, Guest, baggage, guest};

/// Where it goes.
pub enum Target {
    Node(Name),
    /// There is one, and something must end there first.
    Later(String),
}

pub fn leftovers(node: &Name) -> String {
    format!("{node} still takes away what an earlier migration left there")
}

impl Going<'_> {
    pub(super) fn target(&self, baggage: &Baggage<'_>, travel: Travel) -> Result<Target, Error> {
        let from = &self.owner.value.node;
        let wanted = self.m.options.to.as_ref();
        if wanted == Some(from) {
            return Err(Error::conflict(format!("it is on {from} already")));
        }
        if let Some(to) = wanted.filter(|to| self.facts(to).is_none()) {
            return Err(Error::not_found("node", to));
        }
        let Some(guest) = self.view.fleet().guest(self.id()) else { return Err(Error::internal("placement does not know the VM")) };
        // Its data goes along.
        let guest = place::Guest { need: Need { home: Home::Anywhere, ..guest.need.clone() }, ..guest.clone() };
        let (mut refusals, mut later) = (Vec::new(), None);
        let others = match self.view.drains.contains_key(from) {
            true => {
                self.followers_can_move(&guest, from)?;
                place::leave::explain(self.view.fleet(), &guest, from)
            }
            false => place::explain(self.view.fleet(), &guest),
        };
        for verdict in others.into_iter().filter(|v| v.node != *from).filter(|v| wanted.is_none_or(|to| v.node == *to)) {
            if verdict.fits == Err(Refusal::Leftovers) {
                later = Some(Target::Later(leftovers(&verdict.node)));
            }
            let here = || self.facts(&verdict.node).and_then(|facts| check::refuses(baggage, travel, facts));
            match verdict.fits.map_err(|refusal| refusal.to_string()).and_then(|_| here().map_or(Ok(()), Err)) {
                Ok(()) => return Ok(Target::Node(verdict.node)),
                Err(why) => refusals.push(format!("{}: {why}", verdict.node)),
            }
        }
        if let Some(later) = later {
            return Ok(later);
        }
        let told = if refusals.is_empty() { "there is no other node".to_owned() } else { refusals.join("; ") };
        Err(Error::new(Code::NoCapacity, format!("it has nowhere to go ({told})")))
    }

    /// It leaves a node that is emptied only with those that a strict rule keeps with it.
    fn followers_can_move(&self, leaver: &place::Guest, from: &Name) -> Result<(), Error> {
        for follower in place::leave::followers(self.view.fleet(), leaver, from) {
            let Some(record) = self.view.vms.get(&follower.id) else { continue };
            let choices = self.view.choices.get(&follower.id).map(|kept| kept.value.clone()).unwrap_or_default();
            let now = match guest(self.view, follower.id) {
                Guest::Now(now) => now,
                Guest::Busy(_) => Travel::Running,
            };
            if let Err(found) = check::travel(&baggage(self.view, &record.value, &choices), now, self.m.options.manner) {
                let told = format!("VM '{}' must go along and cannot: {}", follower.name, check::words(&found));
                return Err(Error::conflict(told));
            }
        }
        Ok(())
    }
}

//! Where a VM's devices sit, as libvirt said it: in a few bytes each, because a VM has some twenty of them and its order, its report and
//! its choices each hold all.
//!
//! | form | a PCI address |
//! |---|---|
//! | [`Form::Long`] | `<address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0'/>` |
//! | [`Form::Short`] | `0000:04:00.0` |
//!
//! Both are read, whatever was asked for; which one is written goes with the store's level, because older members read the long one only.
//! Whatever is no PCI address, or says more than that, is a text in both.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Form {
    /// As libvirt writes it.
    #[default]
    Long,
    Short,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Address {
    Pci { domain: u16, bus: u8, slot: u8, function: u8 },
    Text(Box<str>),
}

/// Device alias (`ua-disk-root`) to what is kept of its place.
#[derive(Clone, Debug, Default)]
pub struct Addresses {
    by_alias: BTreeMap<Box<str>, Address>,
    form: Form,
}

impl Addresses {
    /// The element, or the text, whatever the form.
    pub fn get(&self, alias: &str) -> Option<Cow<'_, str>> {
        self.by_alias.get(alias).map(|address| address.told(Form::Long))
    }

    pub fn insert(&mut self, alias: impl Into<Box<str>>, told: impl AsRef<str>) {
        self.by_alias.insert(alias.into(), Address::of(told.as_ref()));
    }

    /// What is kept already stays.
    pub fn keep(&mut self, alias: &str, told: impl FnOnce() -> String) {
        if !self.by_alias.contains_key(alias) {
            self.insert(alias, told());
        }
    }

    pub fn retain(&mut self, stays: impl Fn(&str) -> bool) {
        self.by_alias.retain(|alias, _| stays(alias));
    }

    /// Those of `news` win.
    pub fn take_over(&mut self, news: &Self) {
        self.by_alias.extend(news.by_alias.iter().map(|(alias, address)| (alias.clone(), address.clone())));
    }

    /// All of them, long.
    pub fn texts(&self) -> BTreeMap<String, String> {
        self.by_alias.iter().map(|(alias, address)| (alias.to_string(), address.told(Form::Long).into_owned())).collect()
    }

    #[must_use]
    pub fn in_form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    /// The form that it has when it is written and read again: without a PCI address it has none.
    fn seen_form(&self) -> Form {
        let has_pci = self.by_alias.values().any(|address| matches!(address, Address::Pci { .. }));
        if has_pci { self.form } else { Form::Long }
    }
}

/// Another form is another value: it is written anew.
impl PartialEq for Addresses {
    fn eq(&self, other: &Self) -> bool {
        self.by_alias == other.by_alias && self.seen_form() == other.seen_form()
    }
}

impl Eq for Addresses {}

impl<A: Into<Box<str>>, T: AsRef<str>> FromIterator<(A, T)> for Addresses {
    fn from_iter<I: IntoIterator<Item = (A, T)>>(all: I) -> Self {
        let mut addresses = Self::default();
        all.into_iter().for_each(|(alias, told)| addresses.insert(alias, told));
        addresses
    }
}

impl Address {
    /// Of a text in the long form; what would not come back letter by letter stays a text.
    fn of(told: &str) -> Self {
        pci_of_element(told).filter(|pci| pci.told(Form::Long) == told).unwrap_or_else(|| Self::Text(told.into()))
    }

    fn of_short(told: &str) -> Option<Self> {
        let (domain, rest) = told.split_at_checked(4)?;
        let [b':', b1, b2, b':', s1, s2, b'.', f] = *rest.as_bytes() else { return None };
        let hex = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok();
        let pci =
            Self::Pci { domain: u16::from_str_radix(domain, 16).ok()?, bus: hex(&[b1, b2])?, slot: hex(&[s1, s2])?, function: hex(&[f])? };
        (pci.told(Form::Short) == told).then_some(pci)
    }

    fn told(&self, form: Form) -> Cow<'_, str> {
        match (self, form) {
            (Self::Text(text), _) => Cow::Borrowed(text),
            (Self::Pci { domain, bus, slot, function }, Form::Short) => {
                Cow::Owned(format!("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}"))
            }
            (Self::Pci { domain, bus, slot, function }, Form::Long) => Cow::Owned(format!(
                "<address type='pci' domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{slot:02x}' function='0x{function:x}'/>"
            )),
        }
    }
}

fn pci_of_element(told: &str) -> Option<Address> {
    let rest = told.strip_prefix("<address type='pci' domain='0x")?.strip_suffix("'/>")?;
    let (domain, rest) = rest.split_once("' bus='0x")?;
    let (bus, rest) = rest.split_once("' slot='0x")?;
    let (slot, function) = rest.split_once("' function='0x")?;
    let hex = |digits| u8::from_str_radix(digits, 16).ok();
    Some(Address::Pci { domain: u16::from_str_radix(domain, 16).ok()?, bus: hex(bus)?, slot: hex(slot)?, function: hex(function)? })
}

impl Serialize for Addresses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.by_alias.len()))?;
        for (alias, address) in &self.by_alias {
            map.serialize_entry(alias, &address.told(self.form))?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Addresses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("addresses by alias")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Addresses, M::Error> {
                let mut addresses = Addresses::default();
                while let Some((alias, told)) = map.next_entry::<Box<str>, Cow<'de, str>>()? {
                    let short = Address::of_short(&told);
                    if short.is_some() {
                        addresses.form = Form::Short;
                    }
                    addresses.by_alias.insert(alias, short.unwrap_or_else(|| Address::of(&told)));
                }
                Ok(addresses)
            }
        }
        deserializer.deserialize_map(Either)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BALLOON: &str = "<address type='pci' domain='0x0000' bus='0x04' slot='0x1f' function='0x7'/>";

    fn read(json: &str) -> Addresses {
        serde_json::from_str(json).expect("it parses")
    }

    fn write(addresses: &Addresses) -> String {
        serde_json::to_string(addresses).expect("plain data")
    }

    #[test]
    fn both_forms_are_read_and_the_asked_one_is_written() {
        let long = format!(r#"{{"ua-balloon":"{BALLOON}"}}"#);
        let short = r#"{"ua-balloon":"0000:04:1f.7"}"#;
        for told in [&long, short] {
            let addresses = read(told);
            assert_eq!(write(&addresses), *told, "as it was");
            assert_eq!(addresses.get("ua-balloon").as_deref(), Some(BALLOON));
            assert_eq!(write(&addresses.clone().in_form(Form::Short)), short);
            assert_eq!(write(&addresses.in_form(Form::Long)), long);
        }
        assert_ne!(read(&long), read(short), "another form is written anew");
        assert_eq!(read(&long).in_form(Form::Short), read(short));
    }

    #[test]
    fn what_is_no_plain_pci_address_comes_back_letter_by_letter() {
        let texts = [
            "",
            "vda",
            "<nvram template='/usr/share/OVMF/OVMF_VARS_4M.fd'>/x</nvram>",
            "<address type='virtio-serial' controller='0' bus='0' port='1'/>",
            "<address type='pci' domain='0x0000' bus='0x04' slot='0x00' function='0x0' multifunction='on'/>",
            "<address type='pci' domain='0x0' bus='0x04' slot='0x00' function='0x0'/>",
            "<address type='pci' domain='0x0000' bus='0x0A' slot='0x00' function='0x0'/>",
            "<address type='pci' domain='0x10000' bus='0x00' slot='0x00' function='0x0'/>",
            "0000:4:00.0",
            "0000:+4:00.0",
            "00ä:04:00.0",
        ];
        for text in texts {
            let addresses: Addresses = [("a", text)].into_iter().collect();
            for form in [Form::Long, Form::Short] {
                let again = read(&write(&addresses.clone().in_form(form)));
                assert_eq!(again.get("a").as_deref(), Some(text));
                assert_eq!(again, addresses.clone().in_form(form), "{text} has no form");
            }
        }
    }
}

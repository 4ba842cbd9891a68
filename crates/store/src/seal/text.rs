//! One sealed text: readable by the owners of some keys, and nowhere else than where it was put.
//!
//! ```text
//!  sealed:1:KEY=WRAP,KEY=WRAP:BOX      KEY: of a public key, 8 bytes    WRAP: the data key, sealed to it    BOX: nonce, place and text
//! ```
//! Envelope encryption: each text has a data key of its own (XSalsa20-Poly1305), which is sealed to every reader's X25519 key
//! (libsodium's sealed box). The place is inside, so a text that was copied to another VM or field does not open there.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use crypto_box::aead::generic_array::GenericArray;
use crypto_box::aead::generic_array::typenum::Unsigned;
use crypto_box::aead::{Aead, AeadCore, KeyInit, OsRng};
use crypto_secretbox::XSalsa20Poly1305;

/// What every sealed text begins with.
pub const MARK: &str = "sealed:1:";

/// Reads what was sealed to it.
#[derive(Clone)]
pub struct SecretKey(crypto_box::SecretKey);

/// Seals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(crypto_box::PublicKey);

impl SecretKey {
    pub fn random() -> Self {
        Self(crypto_box::SecretKey::generate(&mut OsRng))
    }

    /// From [`Self::to_text`].
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = BASE64.decode(text.trim()).ok()?.try_into().ok()?;
        Some(Self(crypto_box::SecretKey::from(bytes)))
    }

    /// For a file that only its owner reads, or for [`seal`].
    pub fn to_text(&self) -> String {
        BASE64.encode(self.0.to_bytes())
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.public_key())
    }
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SecretKey({})", self.public().id())
    }
}

impl PublicKey {
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 32] = BASE64.decode(text).ok()?.try_into().ok()?;
        Some(Self(crypto_box::PublicKey::from(bytes)))
    }

    pub fn to_text(&self) -> String {
        BASE64.encode(self.0.as_bytes())
    }

    /// A name for it: its first 8 bytes.
    pub fn id(&self) -> String {
        BASE64.encode(&self.0.as_bytes()[..8])
    }
}

/// `text`, to be opened by the readers' keys, at `place` only.
pub fn seal(text: &str, place: &str, readers: &[PublicKey]) -> String {
    let data_key = XSalsa20Poly1305::generate_key(&mut OsRng);
    let nonce = XSalsa20Poly1305::generate_nonce(&mut OsRng);
    let inside = format!("{place}\0{text}");
    let mut whole = nonce.to_vec();
    let sealed = XSalsa20Poly1305::new(&data_key).encrypt(&nonce, inside.as_bytes());
    whole.extend(sealed.expect("memory is the only limit of this cipher"));
    let wrap = |reader: &PublicKey| {
        let wrapped = reader.0.seal(&mut OsRng, &data_key).expect("memory is the only limit of this cipher");
        format!("{}={}", reader.id(), BASE64.encode(wrapped))
    };
    let wraps: Vec<String> = readers.iter().map(wrap).collect();
    format!("{MARK}{}:{}", wraps.join(","), BASE64.encode(whole))
}

/// The text, when one of `keys` opens it and it was sealed for this place.
pub fn open(sealed: &str, place: &str, keys: &[SecretKey]) -> Option<String> {
    let (wraps, whole) = parts(sealed)?;
    let mut data_keys = wraps.filter_map(|(id, wrapped)| {
        let key = keys.iter().find(|key| key.public().id() == id)?;
        key.0.unseal(&BASE64.decode(wrapped).ok()?).ok()
    });
    let data_key = data_keys.next()?;
    let whole = BASE64.decode(whole).ok()?;
    let (nonce, sealed) = whole.split_at_checked(<XSalsa20Poly1305 as AeadCore>::NonceSize::USIZE)?;
    let cipher = XSalsa20Poly1305::new_from_slice(&data_key).ok()?;
    let inside = String::from_utf8(cipher.decrypt(GenericArray::from_slice(nonce), sealed).ok()?).ok()?;
    inside.strip_prefix(place)?.strip_prefix('\0').map(str::to_owned)
}

/// Has it the form of a sealed text? Such a one is written as it is: who could not open it must not seal it again.
pub fn is_sealed(text: &str) -> bool {
    parts(text).is_some_and(|(mut wraps, whole)| wraps.next().is_some() && BASE64.decode(whole).is_ok())
}

fn parts(sealed: &str) -> Option<(impl Iterator<Item = (&str, &str)>, &str)> {
    let (wraps, whole) = sealed.strip_prefix(MARK)?.split_once(':')?;
    Some((wraps.split(',').filter_map(|wrap| wrap.split_once('=')), whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_open_it_at_its_place_and_nobody_else_does() {
        let (one, two, other) = (SecretKey::random(), SecretKey::random(), SecretKey::random());
        let sealed = seal("s3cret\u{e9}", "vm1/password", &[one.public(), two.public()]);
        let opened = |key: &SecretKey, place: &str| open(&sealed, place, std::slice::from_ref(key));
        assert_eq!(opened(&one, "vm1/password").as_deref(), Some("s3cret\u{e9}"));
        assert_eq!(opened(&two, "vm1/password").as_deref(), Some("s3cret\u{e9}"));
        assert_eq!(opened(&other, "vm1/password"), None);
        assert_eq!(opened(&one, "vm2/password"), None, "it was copied elsewhere");
        assert_eq!(opened(&one, "vm1/pass"), None);
        assert!(is_sealed(&sealed) && !sealed.contains("s3cret"));
    }

    #[test]
    fn what_is_no_sealed_text_stays_closed() {
        let key = SecretKey::random();
        let sealed = seal("text", "p", &[key.public()]);
        let cut = &sealed[..sealed.len() - 4];
        for broken in [cut, "", "sealed:1:", "sealed:1::", "sealed:1:a=b:c", "sealed:2:a=b:c", &sealed.replace('=', "")] {
            assert_eq!(open(broken, "p", std::slice::from_ref(&key)), None, "{broken}");
        }
        assert!(!is_sealed("sealed:1:of course"));
    }

    #[test]
    fn keys_survive_their_text() {
        let key = SecretKey::random();
        let again = SecretKey::parse(&key.to_text()).expect("a key");
        assert_eq!(again.public(), key.public());
        assert_eq!(PublicKey::parse(&key.public().to_text()), Some(key.public()));
        assert_eq!(format!("{key:?}"), format!("SecretKey({})", key.public().id()), "a log shows nothing");
        assert!(SecretKey::parse("short").is_none());
    }
}

//! The subject of a certificate that was verified, as a user name: as Mosquitto's `use_identity_as_username` and
//! `use_subject_as_username` have it.
//!
//! Reads as much DER (X.690) of the certificate (RFC 5280 section 4.1) as lies before its subject.

use std::fmt::Write as _;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OID: u8 = 0x06;
/// `[0]`, around the version.
const VERSION: u8 = 0xa0;
const STRINGS: [u8; 3] = [0x0c, 0x13, 0x16]; // UTF8String, PrintableString, IA5String

/// Attributes by OID, with the names that OpenSSL gives them.
const ATTRIBUTES: [(&[u8], &str); 12] = [
    (COMMON_NAME, "CN"),
    (&[0x55, 4, 4], "SN"),
    (&[0x55, 4, 5], "serialNumber"),
    (&[0x55, 4, 6], "C"),
    (&[0x55, 4, 7], "L"),
    (&[0x55, 4, 8], "ST"),
    (&[0x55, 4, 10], "O"),
    (&[0x55, 4, 11], "OU"),
    (&[0x55, 4, 12], "title"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 1], "UID"),
    (&[0x09, 0x92, 0x26, 0x89, 0x93, 0xf2, 0x2c, 0x64, 1, 25], "DC"),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 9, 1], "emailAddress"),
];

const COMMON_NAME: &[u8] = &[0x55, 4, 3];

/// The first common name of the subject of `certificate`; `None` if it has none, or one that cannot be a user name.
pub(crate) fn common_name(certificate: &[u8]) -> Option<String> {
    let found = attributes(certificate)?.into_iter().flatten().find(|(oid, _)| *oid == COMMON_NAME);
    found.map(|(_, text)| text.to_owned())
}

/// The subject of `certificate` as RFC 2253 writes it, the last part first; `None` if it is empty, or has parts that are no text
/// or have no usual name.
pub(crate) fn subject(certificate: &[u8]) -> Option<String> {
    let mut subject = String::new();
    for part in attributes(certificate)?.iter().rev() {
        for (i, (oid, text)) in part.iter().enumerate() {
            let (_, name) = ATTRIBUTES.iter().find(|(known, _)| known == oid)?;
            if !subject.is_empty() {
                subject.push(if i == 0 { ',' } else { '+' });
            }
            write!(subject, "{name}=").expect("a string takes all");
            escape(text, &mut subject);
        }
    }
    (!subject.is_empty()).then_some(subject)
}

/// Section 2.4 of RFC 2253; what is not ASCII byte by byte, as OpenSSL does.
fn escape(text: &str, out: &mut String) {
    let last = text.len() - 1;
    for (i, byte) in text.bytes().enumerate() {
        let is_special = b",+\"\\<>;".contains(&byte) || (i == 0 && byte == b'#');
        let is_outer_blank = byte == b' ' && (i == 0 || i == last);
        if !byte.is_ascii() {
            write!(out, "\\{byte:02X}").expect("a string takes all");
            continue;
        }
        if is_special || is_outer_blank {
            out.push('\\');
        }
        out.push(byte.into());
    }
}

/// OID and text.
type Attribute<'a> = (&'a [u8], &'a str);

/// The parts of the subject, in their order, each of one attribute or more.
fn attributes(certificate: &[u8]) -> Option<Vec<Vec<Attribute<'_>>>> {
    let certificate = contents(&mut { certificate }, SEQUENCE)?;
    let mut rest = contents(&mut { certificate }, SEQUENCE)?;
    if rest.first() == Some(&VERSION) {
        element(&mut rest)?;
    }
    // serialNumber, signature, issuer, validity
    for _ in 0..4 {
        element(&mut rest)?;
    }
    let mut name = contents(&mut rest, SEQUENCE)?;
    let mut parts = Vec::new();
    while !name.is_empty() {
        let mut set = contents(&mut name, SET)?;
        let mut part = Vec::new();
        while !set.is_empty() {
            let mut pair = contents(&mut set, SEQUENCE)?;
            let oid = contents(&mut pair, OID)?;
            let (tag, text) = element(&mut pair)?;
            let text = std::str::from_utf8(text).ok().filter(|_| STRINGS.contains(&tag))?;
            if text.is_empty() || text.contains(char::is_control) {
                return None;
            }
            part.push((oid, text));
        }
        parts.push(part);
    }
    Some(parts)
}

/// The contents of the next element, if it has `tag`.
fn contents<'a>(rest: &mut &'a [u8], tag: u8) -> Option<&'a [u8]> {
    element(rest).filter(|(found, _)| *found == tag).map(|(_, contents)| contents)
}

/// Tag and contents of the next element.
fn element<'a>(rest: &mut &'a [u8]) -> Option<(u8, &'a [u8])> {
    let (&[tag, length], mut behind) = rest.split_first_chunk()?;
    let mut length_bytes = usize::from(length);
    if length >= 0x80 {
        let digits;
        (digits, behind) = behind.split_at_checked(usize::from(length & 0x7f))?;
        if digits.len() > 3 {
            return None;
        }
        length_bytes = digits.iter().fold(0, |length, digit| length << 8 | usize::from(*digit));
    }
    let contents;
    (contents, *rest) = behind.split_at_checked(length_bytes)?;
    Some((tag, contents))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(names: &[(DnType, &str)]) -> Vec<u8> {
        let mut params = CertificateParams::new(["elsewhere.example".to_owned()]).expect("a name");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        params.self_signed(&KeyPair::generate().expect("a key")).expect("signs").der().to_vec()
    }

    #[test]
    fn the_subject_is_written_as_mosquitto_writes_it() {
        // `openssl x509 -noout -subject -nameopt RFC2253` says the same.
        let names = [
            (DnType::CountryName, "FI"),
            (DnType::OrganizationName, "Häuser, Inc."),
            (DnType::OrganizationalUnitName, "#1 "),
            (DnType::CommonName, "bus 17"),
        ];
        let der = certificate(&names);
        assert_eq!(common_name(&der).as_deref(), Some("bus 17"));
        assert_eq!(subject(&der).as_deref(), Some(r"CN=bus 17,OU=\#1\ ,O=H\C3\A4user\, Inc.,C=FI"));
    }

    #[test]
    fn what_is_no_name_is_none() {
        assert_eq!(common_name(&certificate(&[(DnType::OrganizationName, "o")])), None);
        assert_eq!(subject(&certificate(&[])), None);
        assert_eq!(common_name(&certificate(&[(DnType::CommonName, "a\nb")])), None);
        let unusual = DnType::CustomDnType(vec![1, 2, 3, 4]);
        let der = certificate(&[(unusual, "x"), (DnType::CommonName, "a")]);
        assert_eq!((common_name(&der).as_deref(), subject(&der)), (Some("a"), None));
    }

    proptest! {
        #[test]
        fn a_damaged_certificate_is_read_or_not_and_never_panics(at in 0_usize..200, byte: u8, cut in 0_usize..400) {
            let mut der = certificate(&[(DnType::CommonName, "a"), (DnType::CountryName, "FI")]);
            let at = at.min(der.len() - 1);
            der[at] = byte;
            der.truncate(der.len().saturating_sub(cut));
            let (_, _) = (common_name(&der), subject(&der));
        }
    }
}

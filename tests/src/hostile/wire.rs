//! The packets of MQTT 5 that a hostile client needs, byte by byte: a client library would not send most of them.

/// A will, published by the broker when the connection ends without a word.
#[derive(Debug, Clone)]
pub(super) struct Will {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
}

/// How a client introduces itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Connect {
    pub(super) client_id: String,
    pub(super) credentials: Option<(String, String)>,
    pub(super) clean: bool,
    /// In seconds.
    pub(super) session_expiry: u32,
    pub(super) receive_maximum: Option<u16>,
    pub(super) will: Option<Will>,
}

/// A property of a PUBLISH packet.
#[derive(Debug, Clone)]
pub(super) enum Property {
    PayloadFormat(u8),
    /// In seconds.
    Expiry(u32),
    ContentType(String),
    ResponseTopic(String),
    Correlation(Vec<u8>),
    User(String, String),
}

/// A PUBLISH packet.
#[derive(Debug, Clone, Default)]
pub(super) struct Publish {
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
    pub(super) qos: u8,
    pub(super) retain: bool,
    pub(super) properties: Vec<Property>,
}

impl Connect {
    pub(super) fn packet(&self) -> Vec<u8> {
        let mut body = Vec::new();
        text(&mut body, "MQTT");
        body.push(5);
        let credentials = if self.credentials.is_some() { 0xc0 } else { 0 };
        let will = if self.will.is_some() { 0x04 } else { 0 };
        body.push(credentials | will | (u8::from(self.clean) << 1));
        body.extend(60_u16.to_be_bytes());
        let mut properties = vec![0x11];
        properties.extend(self.session_expiry.to_be_bytes());
        if let Some(most) = self.receive_maximum {
            properties.push(0x21);
            properties.extend(most.max(1).to_be_bytes());
        }
        length(&mut body, properties.len());
        body.extend(properties);
        text(&mut body, &self.client_id);
        if let Some(will) = &self.will {
            body.push(0);
            text(&mut body, &will.topic);
            binary(&mut body, &will.payload);
        }
        if let Some((user, password)) = &self.credentials {
            text(&mut body, user);
            binary(&mut body, password.as_bytes());
        }
        packet(0x10, &body)
    }
}

impl Publish {
    pub(super) fn packet(&self, id: u16) -> Vec<u8> {
        let mut body = Vec::with_capacity(self.payload.len() + self.topic.len() + 64);
        text(&mut body, &self.topic);
        if self.qos > 0 {
            body.extend(id.to_be_bytes());
        }
        let mut properties = Vec::new();
        for property in &self.properties {
            property.write(&mut properties);
        }
        length(&mut body, properties.len());
        body.extend(properties);
        body.extend(&self.payload);
        packet(0x30 | (self.qos << 1) | u8::from(self.retain), &body)
    }
}

impl Property {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::PayloadFormat(format) => out.extend([0x01, *format]),
            Self::Expiry(seconds) => {
                out.push(0x02);
                out.extend(seconds.to_be_bytes());
            }
            Self::ContentType(name) => {
                out.push(0x03);
                text(out, name);
            }
            Self::ResponseTopic(topic) => {
                out.push(0x08);
                text(out, topic);
            }
            Self::Correlation(data) => {
                out.push(0x09);
                binary(out, data);
            }
            Self::User(name, value) => {
                out.push(0x26);
                text(out, name);
                text(out, value);
            }
        }
    }
}

/// A SUBSCRIBE packet with QoS 1.
pub(super) fn subscribe(id: u16, filter: &str) -> Vec<u8> {
    let mut body = id.to_be_bytes().to_vec();
    body.push(0);
    text(&mut body, filter);
    body.push(1);
    packet(0x82, &body)
}

pub(super) fn puback(id: u16) -> Vec<u8> {
    packet(0x40, &id.to_be_bytes())
}

/// A packet with its fixed header.
pub(super) fn packet(head: u8, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + 5);
    out.push(head);
    length(&mut out, body.len());
    out.extend(body);
    out
}

/// Text as MQTT writes it; of what is too long for its two bytes of length, the beginning.
fn text(out: &mut Vec<u8>, text: &str) {
    binary(out, text.as_bytes());
}

fn binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(usize::from(u16::MAX))];
    out.extend(u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(bytes);
}

/// A variable byte integer.
fn length(out: &mut Vec<u8>, mut value: usize) {
    loop {
        let digit = u8::try_from(value % 128).unwrap_or(0);
        value /= 128;
        out.push(if value > 0 { digit | 0x80 } else { digit });
        if value == 0 {
            break;
        }
    }
}

/// Splits a stream of bytes into packets.
#[derive(Debug, Default)]
pub(super) struct Packets {
    bytes: Vec<u8>,
}

impl Packets {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend(bytes);
    }

    /// The next whole packet, with its fixed header.
    pub(super) fn next(&mut self) -> Option<Vec<u8>> {
        let mut size = 0_usize;
        let mut at = 1;
        loop {
            let digit = *self.bytes.get(at)?;
            size |= usize::from(digit & 0x7f) << (7 * (at - 1));
            at += 1;
            if digit & 0x80 == 0 || at > 4 {
                break;
            }
        }
        if self.bytes.len() < at + size {
            return None;
        }
        let rest = self.bytes.split_off(at + size);
        Some(std::mem::replace(&mut self.bytes, rest))
    }
}

/// What stands behind the fixed header.
pub(super) fn body(packet: &[u8]) -> &[u8] {
    let digits = packet
        .iter()
        .skip(1)
        .take_while(|digit| **digit & 0x80 != 0)
        .count();
    packet.get(digits + 2..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_split_wherever_their_bytes_are() {
        let publish = Publish {
            topic: "a/b".into(),
            payload: vec![7; 300],
            qos: 1,
            ..Publish::default()
        };
        let first = publish.packet(9);
        let second = puback(9);
        let mut packets = Packets::default();
        let mut seen = Vec::new();
        for byte in first.iter().chain(&second) {
            packets.push(&[*byte]);
            seen.extend(packets.next());
        }
        assert_eq!(seen, [first.clone(), second]);
        assert_eq!(body(&first)[..5], [0, 3, b'a', b'/', b'b']);
    }
}

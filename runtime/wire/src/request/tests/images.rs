//! Images in requests: their places, their details, and what is refused.

use base64::Engine as _;
use phi_edge_api::{Detail, PlacedImage};

use super::*;

fn request(text: &str) -> Request {
    parse(text).unwrap().unwrap()
}

fn files(request: &Request) -> Vec<(&[u8], Detail)> {
    let images = request.images.iter();
    images.map(|image| (&*image.file, image.detail)).collect()
}

fn as_image<'a>(bytes: &'a [u8], content_type: &'a str, question: Option<&'a str>) -> Payload<'a> {
    Payload {
        bytes,
        content_type: Some(content_type),
        question,
    }
}

#[test]
fn images_of_the_list_stand_before_the_last_text_of_the_user() {
    let parsed = request(r#"{"prompt":"What is it?","system":"s","images":["eA==","eHk"],"detail":"high"}"#);
    assert_eq!(
        files(&parsed),
        [(&b"x"[..], Detail::High), (&b"xy"[..], Detail::High)]
    );
    assert_eq!(parsed.messages[1].content, "\n\nWhat is it?");
    assert_eq!(
        parsed.messages[1].images,
        [PlacedImage::unread(0, 0), PlacedImage::unread(1, 1)]
    );
    let parsed = request(
        r#"{"images":["eA=="],"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},
        {"role":"user","content":[{"type":"text","text":"c"},{"type":"image","data":"eHk="}]},{"role":"assistant","content":"d"}]}"#,
    );
    let places: Vec<_> = parsed
        .messages
        .iter()
        .map(|m| (m.content.as_str(), m.images.as_slice()))
        .collect();
    let placed = [PlacedImage::unread(0, 0), PlacedImage::unread(2, 1)];
    assert_eq!(places, [("a", &[][..]), ("b", &[]), ("\nc", &placed), ("d", &[])]);
}

#[test]
fn image_parts_keep_their_places_and_details() {
    let parsed = request(
        r#"{"detail":"low","messages":[{"role":"user","content":[{"type":"image","data":"eA==","detail":"high"},
        {"type":"text","text":"ü"},{"type":"image_url","image_url":{"url":"data:image\/png;base64,eHk=","detail":"auto"}},
        {"type":"image_url","image_url":"data:image/jpeg;base64,eHl6"}]}]}"#,
    );
    assert_eq!(
        files(&parsed),
        [
            (&b"x"[..], Detail::High),
            (&b"xy"[..], Detail::Auto),
            (&b"xyz"[..], Detail::Low)
        ]
    );
    assert_eq!(parsed.messages[0].content, "ü");
    let places: Vec<_> = parsed.messages[0]
        .images
        .iter()
        .map(|placed| (placed.at, placed.image))
        .collect();
    assert_eq!(places, [(0, 0), (2, 1), (2, 2)]);
}

#[test]
fn faults_of_images_are_named_and_not_quoted() {
    let part = |part: &str| format!(r#"{{"messages":[{{"role":"user","content":[{part}]}}]}}"#);
    for (text, says) in [
        (r#"{"prompt":"x","images":["e-A="]}"#.into(), "images[0]: is not base64: byte 1"),
        (r#"{"prompt":"x","images":["eA==",""]}"#.into(), "images[1]: is empty"),
        (r#"{"prompt":"x","images":["eA==",3]}"#.into(), "images[1]: invalid type"),
        (r#"{"prompt":"x","images":"eA=="}"#.into(), "images: invalid type"),
        (r#"{"prompt":"x","images":["data:image/png;base64,eA=="]}"#.into(), "data URL"),
        (r#"{"prompt":"x","detail":"medium"}"#.into(), "detail: unknown variant"),
        (part(r#"{"type":"image"}"#), "messages[0].content[0].data: is missing"),
        (part(r#"{"type":"image_url"}"#), "messages[0].content[0].image_url: is missing"),
        (part(r#"{"type":"image_url","image_url":7}"#), "messages[0].content[0].image_url"),
        (
            part(r#"{"type":"image_url","image_url":{"url":"https://example.com/secret.png"}}"#),
            "messages[0].content[0].image_url.url: must be a data URL (data:image/jpeg;base64,…): nothing is ever fetched",
        ),
        (part(r#"{"type":"image_url","image_url":"file:///secret"}"#), "nothing is ever fetched"),
        (
            r#"{"messages":[{"role":"system","content":[{"type":"image","data":"eA=="}]},{"role":"user","content":"x"}]}"#.into(),
            "messages[0].content[0]: images belong to messages of the user",
        ),
        (
            r#"{"messages":[{"role":"assistant","content":"x"}],"images":["eA=="]}"#.into(),
            "images: no message is the user's",
        ),
    ] {
        let rejected = error(&text);
        assert_eq!(rejected.code, ErrorCode::BadRequest, "{text}");
        assert!(rejected.message.contains(says), "{text}: {}", rejected.message);
        assert!(!rejected.message.contains("secret"), "{}", rejected.message);
    }
}

#[test]
fn images_are_counted_before_they_are_decoded() {
    // The last ones are no base64: they are not decoded.
    for text in [
        r#"{"prompt":"x","images":["!","!","!","!"]}"#,
        r#"{"images":["eA==","eA=="],"messages":[{"role":"user","content":[{"type":"image","data":"eA=="},{"type":"image","data":"!"}]}]}"#,
    ] {
        let rejected = error(text);
        assert_eq!(rejected.code, ErrorCode::TooLarge, "{text}");
        assert!(rejected.message.contains("limits.images"), "{}", rejected.message);
        assert_eq!(rejected.field(), "images");
    }
}

#[test]
fn a_payload_may_be_an_image() {
    // Its type decides, not its first byte.
    for bytes in [&b"\xff\xd8\xff"[..], b"{\"prompt\":\"x\"}", b"text"] {
        let parsed = parse_request(as_image(bytes, "Image/JPEG", Some("How many?")), LIMITS)
            .unwrap()
            .unwrap();
        assert_eq!(files(&parsed), [(bytes, Detail::Auto)]);
        assert_eq!(parsed.messages[0].content, "\nHow many?");
        assert_eq!(parsed.messages[0].images, [PlacedImage::unread(0, 0)]);
    }
    assert_eq!(parse_request(as_image(b"", "image/png", None), LIMITS), Ok(None));
    let no_images = ParseLimits { images: 0, ..LIMITS };
    for (payload, limits, code, says) in [
        (
            as_image(b"x", "image/png", None),
            LIMITS,
            ErrorCode::BadRequest,
            "user property prompt",
        ),
        (
            as_image(b"x", "image/png", Some(" ")),
            LIMITS,
            ErrorCode::BadRequest,
            "user property prompt",
        ),
        (
            as_image(b"x", "image/gif", Some("?")),
            LIMITS,
            ErrorCode::BadRequest,
            "send image/png, image/jpeg or image/webp",
        ),
        (
            as_image(b"x", "image/", Some("?")),
            LIMITS,
            ErrorCode::BadRequest,
            "send image/png",
        ),
        (
            as_image(b"x", "image/png", Some("?")),
            no_images,
            ErrorCode::TooLarge,
            "limits.images",
        ),
    ] {
        let rejected = parse_request(payload, limits).expect_err(says);
        assert_eq!(rejected.code, code);
        assert!(rejected.message.contains(says), "{}", rejected.message);
    }
}

#[test]
fn the_question_belongs_to_images_only() {
    let payload = Payload {
        bytes: b"a prompt",
        content_type: None,
        question: Some("another"),
    };
    let parsed = parse_request(payload, LIMITS).unwrap().unwrap();
    assert_eq!(parsed.messages, [user("a prompt")]);
}

/// A part of a message: a text, or a file.
fn parts() -> impl Strategy<Value = Vec<Result<String, Vec<u8>>>> {
    let file = proptest::collection::vec(any::<u8>(), 1..40);
    let part = prop_oneof!["[a-zü\\\\\"\n]{0,5}".prop_map(Ok), file.prop_map(Err)];
    proptest::collection::vec(part, 0..6)
}

proptest! {
    /// Texts and images come out in the order in which they were put in.
    #[test]
    fn parts_come_back(parts in parts(), listed in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..3)) {
        let encode = |file: &Vec<u8>| base64::engine::general_purpose::STANDARD.encode(file);
        let content: Vec<_> = parts.iter().enumerate().map(|(n, part)| match part {
            Ok(text) => serde_json::json!({"type": "text", "text": text}),
            Err(file) if n % 2 == 0 => serde_json::json!({"type": "image", "data": encode(file)}),
            Err(file) => serde_json::json!(
                {"type": "image_url", "image_url": {"url": format!("data:image/webp;base64,{}", encode(file))}}
            ),
        }).collect();
        let images: Vec<_> = listed.iter().map(encode).collect();
        let body = serde_json::json!({"messages": [{"role": "user", "content": content}], "images": images}).to_string();
        let payload = Payload { bytes: body.as_bytes(), content_type: None, question: None };
        let parsed = parse_request(payload, ParseLimits { images: 9, ..LIMITS }).unwrap().unwrap();
        let message = &parsed.messages[0];
        let (mut text, mut files) = (String::new(), Vec::new());
        for file in &listed {
            files.push((text.len(), file));
            text.push('\n');
        }
        for part in &parts {
            match part {
                Ok(piece) => text.push_str(piece),
                Err(file) => files.push((text.len(), file)),
            }
        }
        prop_assert_eq!(&message.content, &text);
        let placed: Vec<_> = message.images.iter()
            .map(|placed| (placed.at, parsed.images[placed.image].file.to_vec()))
            .collect();
        prop_assert_eq!(placed, files.into_iter().map(|(at, file)| (at, file.clone())).collect::<Vec<_>>());
    }
}

#[test]
fn an_image_without_its_content_type_is_named_and_nothing_is_quoted() {
    for (bytes, says) in [
        (&b"\xff\xd8\xff\xe0 and so on"[..], "an image (jpeg, 14 bytes)"),
        (b"\x89PNG\r\n\x1a\n and so on", "send image/png"),
        (b"RIFF\xff\xff\0\0WEBPVP8 ", "an image (webp, 16 bytes)"),
        (b"GIF89a\xff", "byte 6 is the first wrong one"),
    ] {
        let payload = Payload {
            bytes,
            content_type: None,
            question: None,
        };
        let error = parse_request(payload, LIMITS).expect_err(says);
        assert!(error.message.contains(says), "{error:?}");
        assert!(!error.message.contains("and so on"), "{error:?}");
    }
}

#[test]
fn images_that_are_no_list_are_refused_without_their_content() {
    let file = base64::engine::general_purpose::STANDARD.encode(b"pixels of a gate camera".repeat(30));
    for body in [
        format!(r#"{{"prompt":"x","images":"{file}"}}"#),
        format!(r#"{{"prompt":"x","detail":"{file}"}}"#),
        format!(r#"{{"prompt":"x","{file}":1}}"#),
        format!(r#"{{"messages":[{{"role":"user","content":[{{"type":"{file}"}}]}}]}}"#),
    ] {
        let message = error(&body).message;
        assert!(
            !message.contains(&file[..20]) && message.contains('…'),
            "{message}"
        );
    }
    let message = error(&format!(r#"{{"images":"{file}"}}"#)).message;
    assert!(
        message.starts_with("images: invalid type: string \"…\", expected a sequence"),
        "{message}"
    );
}

#[test]
fn base64_in_lines_is_told() {
    let line = "A".repeat(76);
    for (body, at) in [
        (
            format!("{{\"id\":\"a\",\"images\":[\"{line}\n{line}\nAAAA\"],\"prompt\":\"x\"}}"),
            "images[0]: ",
        ),
        (
            format!("{{\n\"prompt\":\"x\",\n\"images\":[\"AAAA\",\"{line}\r\n{line}\"]}}"),
            "images[1]: ",
        ),
        (
            format!("{{\"messages\":[{{\"role\":\"user\",\"content\":[{{\"data\":\"{line}\nAA==\"}}]}}]}}"),
            "messages[0].content[0].data: ",
        ),
    ] {
        let message = error(&body).message;
        let expected = format!("{at}base64 with line breaks; encode it in one line (base64 -w0)");
        assert_eq!(message, expected, "{body}");
    }
    for body in [
        "{\"prompt\":\"two\nlines\"}".to_owned(),
        format!("{{\"prompt\":\"{line}\tx\"}}"),
        format!("{{\"prompt\":\"{line}\",\n\"max_tokens\":x}}"),
        format!("{line}\n{{"),
        format!("{{\"prompt\":\"x\",\"images\":[\"{line}\"\n"),
    ] {
        let said = parse(&body).err().map(|error| error.message).unwrap_or_default();
        assert!(!said.contains("line breaks"), "{said}");
    }
    // Escaped, line breaks are part of the string.
    let body = format!("{{\"prompt\":\"x\",\"images\":[\"{line}\\n{line}\"]}}");
    assert!(error(&body).message.contains("byte 76 is white space"));
}

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::OnceLock;

use phi_edge_engine::TokenId;
use proptest::prelude::*;

use super::*;
use crate::chat_template::PlacedImage;
use crate::model_dir::ModelDir;
use crate::text_model::TextModel;

/// A token for each byte, and one before each message: that of its role.
struct Letters;

const ROLES: [(Role, u32); 3] = [(Role::System, 1000), (Role::User, 1001), (Role::Assistant, 1002)];
const END: Symbol = Symbol::Token(TokenId(1003));

fn role_token(role: Role) -> Symbol {
    Symbol::Token(TokenId(
        ROLES.into_iter().find(|(known, _)| *known == role).unwrap().1,
    ))
}

fn within(ids: Vec<Symbol>, room: usize) -> Result<Vec<Symbol>, EncodeError> {
    if ids.len() > room {
        return Err(EncodeError::TooLong {
            tokens: ids.len(),
            exact: true,
        });
    }
    Ok(ids)
}

impl ChatEncoder for Letters {
    fn encode_opening(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError> {
        let mut ids = Vec::new();
        for message in messages {
            ids.push(role_token(message.role));
            ids.extend(
                message
                    .content
                    .bytes()
                    .map(|byte| Symbol::Token(TokenId(byte.into()))),
            );
            ids.push(END);
        }
        ids.push(role_token(Role::Assistant));
        within(ids, room)
    }

    fn encode_following(&self, messages: &[Message], room: usize) -> Result<Vec<Symbol>, EncodeError> {
        let mut ids = vec![END];
        ids.extend(self.encode_opening(messages, usize::MAX)?);
        within(ids, room)
    }

    fn turns(&self, ids: &[Symbol]) -> Option<ConversationTurns> {
        let role = |at: usize, role| ids[at] == role_token(role);
        let head = (0..ids.len()).find(|at| role(*at, Role::User))?;
        let begins = (head..ids.len()).filter(|at| role(*at, Role::User) || role(*at, Role::System));
        Some(ConversationTurns {
            head,
            turns: begins
                .map(|start| ConversationTurn {
                    start,
                    system: role(start, Role::System),
                })
                .collect(),
            close: 1,
        })
    }

    fn token_ends(&self, text: &str) -> Result<Vec<usize>, ModelError> {
        Ok((1..=text.len())
            .map(|end| text.floor_char_boundary(end))
            .collect())
    }
}

fn message(role: Role, content: &str) -> Message {
    Message::new(role, content.to_owned())
}

fn room(most: usize) -> PromptRoom {
    PromptRoom {
        preferred: most,
        most,
    }
}

/// The conversation of ids as `s:`, `u:` and `a:` with texts.
fn shown(ids: &[Symbol]) -> String {
    ids.iter()
        .map(|id| match id.token().unwrap().0 {
            1000 => "s:".to_owned(),
            1001 => "u:".to_owned(),
            1002 => "a:".to_owned(),
            1003 => " ".to_owned(),
            byte => char::from(u8::try_from(byte).unwrap()).to_string(),
        })
        .collect()
}

fn conversation() -> Vec<Message> {
    vec![
        message(Role::System, "sys"),
        message(Role::User, "one"),
        message(Role::Assistant, "eins"),
        message(Role::User, "two"),
        message(Role::Assistant, "zwei"),
        message(Role::User, "three"),
    ]
}

#[track_caller]
fn check(said: &[Symbol], messages: &[Message], truncation: Truncation, most: usize, expected: &str) {
    let whole = encode_truncated(&Letters, said, messages, Truncation::Error, room(usize::MAX)).unwrap();
    let found = encode_truncated(&Letters, said, messages, truncation, room(most));
    match found {
        Ok(Truncated { ids, left_out }) => {
            assert_eq!(shown(&ids), expected);
            assert_eq!(left_out, whole.ids.len() - ids.len());
            assert!(ids.len() <= most);
        }
        Err(error) => assert_eq!(error.to_string(), expected),
    }
}

#[test]
fn the_oldest_turns_are_left_out_and_system_messages_stay() {
    let oldest = |most, expected| check(&[], &conversation(), Truncation::OldestMessages, most, expected);
    oldest(35, "s:sys u:one a:eins u:two a:zwei u:three a:");
    oldest(34, "s:sys u:two a:zwei u:three a:");
    oldest(24, "s:sys u:two a:zwei u:three a:");
    oldest(23, "s:sys u:three a:");
    oldest(13, "s:sys u:three a:");
    oldest(12, "the prompt has 13 tokens");
    // By default nothing is.
    check(
        &[],
        &conversation(),
        Truncation::Error,
        34,
        "the prompt has 35 tokens",
    );
    // What stands behind the last message of the user stays, and so do system messages in between.
    let messages = [
        message(Role::Assistant, "hello"),
        message(Role::User, "a"),
        message(Role::System, "b"),
        message(Role::User, "c"),
        message(Role::Assistant, "d"),
    ];
    check(&[], &messages, Truncation::OldestMessages, 12, "s:b u:c a:d a:");
}

#[test]
fn messages_of_the_assistant_one_after_the_other_are_left_out_one_by_one() {
    let messages = [
        message(Role::Assistant, "1"),
        message(Role::Assistant, "2"),
        message(Role::User, "3"),
        message(Role::System, "s"),
        message(Role::Assistant, "4"),
        message(Role::Assistant, "5"),
        message(Role::Assistant, "6"),
        message(Role::User, "7"),
    ];
    let oldest = |most, expected| check(&[], &messages, Truncation::OldestMessages, most, expected);
    oldest(25, "a:1 a:2 u:3 s:s a:4 a:5 a:6 u:7 a:");
    oldest(24, "a:2 u:3 s:s a:4 a:5 a:6 u:7 a:");
    oldest(21, "u:3 s:s a:4 a:5 a:6 u:7 a:");
    // The answer goes with its question, also behind a system message.
    oldest(18, "s:s a:5 a:6 u:7 a:");
    oldest(12, "s:s a:6 u:7 a:");
    oldest(9, "s:s u:7 a:");
    oldest(6, "the prompt has 7 tokens");
    // Of many no more are left out than necessary.
    let mut many = vec![message(Role::Assistant, "x"); 20_000];
    many.push(message(Role::User, "y"));
    let found = encode_truncated(&Letters, &[], &many, Truncation::OldestMessages, room(2047)).unwrap();
    assert_eq!(found.ids.len(), 2047);
}

#[test]
fn turns_of_a_session_are_left_out_before_messages() {
    let mut said = Letters.encode_opening(&conversation()[..2], usize::MAX).unwrap();
    said.extend([b'x'; 4].map(|byte| Symbol::Token(TokenId(byte.into()))));
    let more = [
        message(Role::System, "new"),
        message(Role::User, "four"),
        message(Role::Assistant, "vier"),
        message(Role::User, "five"),
    ];
    said.extend(Letters.encode_following(&more[..2], usize::MAX).unwrap());
    said.push(Symbol::Token(TokenId(b'y'.into())));
    let oldest = |most, expected| check(&said, &more[1..], Truncation::OldestMessages, most, expected);
    oldest(49, "s:sys u:one a:xxxx s:new u:four a:y u:four a:vier u:five a:");
    oldest(48, "s:sys s:new u:four a:y u:four a:vier u:five a:");
    oldest(38, "s:sys s:new u:four a:y u:four a:vier u:five a:");
    oldest(37, "s:sys s:new u:four a:vier u:five a:");
    oldest(28, "s:sys s:new u:five a:");
    oldest(16, "the prompt has 17 tokens");
}

#[test]
fn a_text_is_cut_beside_the_places_of_its_images() {
    let places = [2, 12].map(|at| PlacedImage::unread(at, 0));
    let message = Message {
        images: places.to_vec(),
        ..Message::new(Role::User, "ab0123456789yz")
    };
    let stretches = stretches_between_images(&message);
    assert_eq!(stretches, [0..2, 2..12, 12..14]);
    let mut cut = message.clone();
    replace_stretch(&mut cut, &stretches[1], "09");
    assert_eq!(cut.content, "ab09yz");
    assert_eq!(
        cut.images.iter().map(|image| image.at).collect::<Vec<_>>(),
        [2, 4]
    );
    check(&[], &[message], Truncation::Middle, 9, "u:ab09yz a:");
}

#[test]
fn the_middle_of_the_longest_message_is_left_out() {
    let messages = [
        message(Role::System, "sys"),
        message(Role::User, "0123456789"),
        message(Role::Assistant, "x"),
    ];
    let middle = |most, expected| check(&[], &messages, Truncation::Middle, most, expected);
    middle(21, "s:sys u:0123456789 a:x a:");
    middle(20, "s:sys u:012346789 a:x a:");
    middle(14, "s:sys u:019 a:x a:");
    middle(13, "s:sys u:09 a:x a:");
    middle(12, "the prompt has at least 13 tokens");
    let said = Letters.encode_opening(&messages[..2], usize::MAX).unwrap();
    check(
        &said,
        &[message(Role::User, "abcdef")],
        Truncation::Middle,
        25,
        "s:sys u:0123456789 a: u:abf a:",
    );
}

#[test]
fn an_answer_that_gets_less_room_than_it_asks_for_is_no_error() {
    let room = PromptRoom {
        preferred: 12,
        most: 20,
    };
    let truncated = |truncation| encode_truncated(&Letters, &[], &conversation(), truncation, room);
    let oldest = truncated(Truncation::OldestMessages).unwrap();
    assert_eq!(shown(&oldest.ids), "s:sys u:three a:");
    // Without a message to leave out the prompt stays as it is.
    let alone = [message(Role::User, "0123456789")];
    let kept = encode_truncated(&Letters, &[], &alone, Truncation::OldestMessages, room).unwrap();
    assert_eq!((kept.ids.len(), kept.left_out), (13, 0));
    assert_eq!(PromptRoom::beside(256, 2048).preferred, 2048 - 256);
    assert_eq!(PromptRoom::beside(4096, 2048).preferred, 1024);
    assert_eq!(PromptRoom::beside(1, 2048), super::tests::room(2047));
    assert_eq!(PromptRoom::beside(0, 2048).at_most(9), super::tests::room(9));
}

fn demo() -> TextModel {
    static DEMO: OnceLock<TextModel> = OnceLock::new();
    let open = || {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        ModelDir::open(&folder).unwrap().text().unwrap()
    };
    DEMO.get_or_init(open).clone()
}

fn decode(text: &TextModel, ids: &[Symbol]) -> String {
    let mut detokenizer = text.detokenizer_with_specials();
    let mut decoded: String = ids
        .iter()
        .map(|id| detokenizer.push(id.token().unwrap()))
        .collect();
    decoded.push_str(&detokenizer.finish());
    decoded
}

#[test]
fn a_real_conversation_is_the_same_as_if_it_had_begun_later() {
    let text = demo();
    for with_system in [true, false] {
        let mut messages = conversation();
        let first = usize::from(with_system);
        messages.drain(..1 - first);
        let whole = text.encode_chat(&messages).unwrap();
        let later = [&messages[..first], &messages[first + 2..]].concat();
        let expected = text.encode_chat(&later).unwrap();
        let limits = room(whole.len() - 1);
        let found = encode_truncated(&text, &[], &messages, Truncation::OldestMessages, limits).unwrap();
        assert_eq!(found.ids, expected);
        assert_eq!(found.left_out, whole.len() - expected.len());
        // So it is in a session, whose answers are generated.
        let mut said = text.encode_chat(&messages[..=first]).unwrap();
        said.extend(text.encode_raw("eins").unwrap().into_iter().map(Symbol::from));
        said.extend(text.encode_continuation(&messages[first + 2..first + 3]).unwrap());
        said.extend(text.encode_raw("zwei").unwrap().into_iter().map(Symbol::from));
        let last = &messages[first + 4..];
        let found = encode_truncated(&text, &said, last, Truncation::OldestMessages, limits).unwrap();
        assert_eq!(decode(&text, &found.ids), decode(&text, &expected));
        let nothing_else = [&messages[..first], last].concat();
        let expected = text.encode_chat(&nothing_else).unwrap();
        let limits = room(expected.len());
        let found = encode_truncated(&text, &said, last, Truncation::OldestMessages, limits).unwrap();
        assert_eq!(found.ids, expected);
    }
}

#[test]
fn a_long_text_keeps_both_ends_in_pieces() {
    let text = demo();
    // Several pieces of the encoder, and characters that are several tokens.
    let long = (0..9000).fold(String::new(), |text, n| text + &format!("line {n} ü€漢 "));
    let messages = [message(Role::System, "Be brief."), message(Role::User, &long)];
    let found = encode_truncated(&text, &[], &messages, Truncation::Middle, room(2000)).unwrap();
    assert!((1990..=2000).contains(&found.ids.len()), "{}", found.ids.len());
    let decoded = decode(&text, &found.ids);
    assert!(!decoded.contains('\u{FFFD}'), "a character is cut");
    assert!(decoded.contains("Be brief.") && decoded.contains("line 0 ") && decoded.contains("line 8999 "));
    let whole = text.encode_chat(&messages).unwrap().len();
    assert_eq!(found.left_out, whole - found.ids.len());
}

fn conversations() -> impl Strategy<Value = Vec<Message>> {
    let role = prop::sample::select(vec![Role::System, Role::User, Role::Assistant]);
    let content = "([a-z]{1,5}|[ .\n]|[0-9]|[ü€漢😀]){0,20}";
    prop::collection::vec(
        (role, content).prop_map(|(role, content)| message(role, &content)),
        1..8,
    )
}

proptest! {
    /// Whatever is left out, the prompt fits, the same every time, and what must stay is in it.
    #[test]
    fn truncated_prompts_fit_and_keep_what_they_must(messages in conversations(), least in 8usize..120, answer in 0usize..40) {
        let text = demo();
        let limits = PromptRoom { preferred: least, most: least + answer };
        let whole = text.encode_chat(&messages).unwrap();
        for truncation in [Truncation::OldestMessages, Truncation::Middle] {
            let found = match encode_truncated(&text, &[], &messages, truncation, limits) {
                Ok(found) => found,
                Err(EncodeError::TooLong { tokens, .. }) => {
                    prop_assert!(tokens > limits.most && tokens <= whole.len());
                    continue;
                }
                Err(error) => panic!("{error}"),
            };
            prop_assert!(found.ids.len() <= limits.most);
            prop_assert_eq!(found.left_out, whole.len() - found.ids.len());
            prop_assert!(found.left_out > 0 || found.ids == whole);
            prop_assert!(whole.len() > limits.preferred || found.left_out == 0);
            let again = encode_truncated(&text, &[], &messages, truncation, limits).unwrap();
            prop_assert_eq!(&again, &found);
            let decoded = decode(&text, &found.ids);
            if truncation == Truncation::OldestMessages {
                let last = messages.iter().rfind(|message| message.role == Role::User);
                let stays = messages.iter().filter(|message| message.role == Role::System).chain(last);
                for message in stays {
                    prop_assert!(decoded.contains(message.content.trim()), "{decoded:?} lacks {message:?}");
                }
            }
        }
    }

    #[test]
    fn ends_of_tokens_rise_to_the_end_of_the_text(content in "([a-z]{1,9}|[ .\n]|[0-9]|[ü€漢😀]){0,40}") {
        let ends = demo().token_ends(&content).unwrap();
        prop_assert!(ends.is_sorted());
        prop_assert!(ends.iter().all(|end| content.is_char_boundary(*end)));
        prop_assert_eq!(ends.len(), demo().encode_raw(&content).unwrap().len());
        prop_assert_eq!(ends.last().copied().unwrap_or(0), content.len());
    }
}

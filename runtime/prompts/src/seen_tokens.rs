//! The ids of an answer as its client saw it.
//!
//! The engine learns that an answer has come to a stop text only when it is complete: the tokens of that text were generated,
//! and the client never saw them. A session must not go on from them.

use phi_edge_engine::TokenId;

use crate::interface::Prompts;

/// The number of tokens behind the last certain text that are tried one by one: those of a few characters in the byte
/// fallback.
const PENDING_TOKENS: usize = 64;

/// Returns the ids that decode to `text`, with which the text of `tokens` begins: the tokens whose text lies wholly within
/// it, then the encoding of the part of a token that was cut.
pub fn seen(prompts: &dyn Prompts, tokens: &[TokenId], text: &str) -> Vec<TokenId> {
    let (certain, looked_at) = match extent(prompts, tokens, text) {
        Extent::Whole => return tokens.to_vec(),
        Extent::Part { certain, looked_at } => (certain, looked_at),
    };
    let mut longest = (certain, 0);
    for count in certain..=looked_at.min(certain + PENDING_TOKENS) {
        let begin = decode(prompts, &tokens[..count]);
        if begin.len() > longest.1 && text.starts_with(&begin) {
            longest = (count, begin.len());
        }
    }
    // Behind a part of a malformed character nothing can be added: then only the certain tokens count.
    [longest.0, certain]
        .into_iter()
        .find_map(|count| completed(prompts, &tokens[..count], text))
        .unwrap_or_else(|| {
            tracing::debug!("the end of an answer has no tokens: its session goes on without it");
            tokens[..certain].to_vec()
        })
}

/// Returns `begin` and the encoding of the rest of `text`.
fn completed(prompts: &dyn Prompts, begin: &[TokenId], text: &str) -> Option<Vec<TokenId>> {
    let rest = text.strip_prefix(decode(prompts, begin).as_str())?;
    if rest.is_empty() {
        return Some(begin.to_vec());
    }
    Some([begin, &prompts.encode_behind(begin, rest)?].concat())
}

/// The part of an answer that was seen.
enum Extent {
    Whole,
    Part {
        /// Tokens whose text was seen.
        certain: usize,
        /// Tokens up to the one that shows that not all of them were.
        looked_at: usize,
    },
}

fn extent(prompts: &dyn Prompts, tokens: &[TokenId], text: &str) -> Extent {
    let mut detokenizer = prompts.detokenizer();
    let mut rest = text;
    let mut certain = 0;
    for (before, id) in tokens.iter().enumerate() {
        let piece = detokenizer.push(*id);
        match rest.strip_prefix(piece.as_str()) {
            // Its text may come later.
            Some(_) if piece.is_empty() => {}
            Some(left) => (rest, certain) = (left, before + 1),
            None => {
                return Extent::Part {
                    certain,
                    looked_at: before,
                };
            }
        }
    }
    if detokenizer.finish() == rest {
        Extent::Whole
    } else {
        Extent::Part {
            certain,
            looked_at: tokens.len(),
        }
    }
}

fn decode(prompts: &dyn Prompts, ids: &[TokenId]) -> String {
    let mut detokenizer = prompts.detokenizer();
    let mut text: String = ids.iter().map(|id| detokenizer.push(*id)).collect();
    text.push_str(&detokenizer.finish());
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use phi_edge_engine::{Detokenizer, Stop, Symbol};
    use phi_edge_models::{Message, ModelDir, TextModel};
    use proptest::prelude::*;

    use super::*;

    /// A vocabulary of words and, as with byte fallback, of bytes: a run of bytes is certain at its end.
    struct ByteFallback;

    const WORDS: [&str; 7] = ["ab", " and", "END", "e", "N", "ü€", "."];
    const BYTES: u32 = 1000;

    struct WordsOut {
        run: Vec<u8>,
    }

    impl WordsOut {
        fn end_run(&mut self) -> String {
            let run = std::mem::take(&mut self.run);
            // As the reference has it: every byte of a malformed run is replaced.
            String::from_utf8(run).unwrap_or_else(|run| "\u{FFFD}".repeat(run.as_bytes().len()))
        }
    }

    impl Detokenizer for WordsOut {
        fn push(&mut self, id: TokenId) -> String {
            if let Some(byte) = id.0.checked_sub(BYTES) {
                self.run.push(u8::try_from(byte).unwrap());
                return String::new();
            }
            self.end_run() + WORDS[id.0 as usize]
        }

        fn finish(&mut self) -> String {
            self.end_run()
        }
    }

    impl Prompts for ByteFallback {
        fn encode(&self, _messages: &[Message]) -> Result<Vec<Symbol>, String> {
            Ok(Vec::new())
        }

        fn encode_continuation(&self, _messages: &[Message]) -> Result<Vec<Symbol>, String> {
            Ok(Vec::new())
        }

        fn encode_behind(&self, before: &[TokenId], text: &str) -> Option<Vec<TokenId>> {
            let tail = bytes(text);
            let whole = decode(self, &[before, &tail].concat());
            (whole == decode(self, before) + text).then_some(tail)
        }

        fn detokenizer(&self) -> Box<dyn Detokenizer> {
            Box::new(WordsOut { run: Vec::new() })
        }

        fn stop_ids(&self) -> Vec<TokenId> {
            Stop::default().ids
        }
    }

    fn words(ids: &[u32]) -> Vec<TokenId> {
        ids.iter().copied().map(TokenId).collect()
    }

    fn bytes(text: &str) -> Vec<TokenId> {
        text.bytes()
            .map(|byte| TokenId(BYTES + u32::from(byte)))
            .collect()
    }

    fn check(tokens: &[TokenId], text: &str, expected: &[TokenId]) {
        assert_eq!(
            seen(&ByteFallback, tokens, text),
            expected,
            "{text:?} of {tokens:?}"
        );
    }

    #[test]
    fn whole_tokens_stay_and_a_cut_one_is_encoded() {
        let tokens = words(&[0, 1, 2]);
        check(&tokens, "ab andEND", &tokens);
        check(&tokens, "ab and", &words(&[0, 1]));
        check(&tokens, "", &[]);
        check(&tokens, "ab a", &[words(&[0]), bytes(" a")].concat());
        check(&words(&[5, 2]), "ü", &bytes("ü"));
    }

    #[test]
    fn bytes_count_as_far_as_they_were_seen() {
        let said = [words(&[0]), bytes("€漢"), words(&[2])].concat();
        check(&said, "ab€漢", &said[..7]);
        // The stop text begins within the run, which is certain at its end only.
        check(&said, "ab€", &said[..4]);
        check(&said, "ab", &said[..1]);
        check(
            &said[..6],
            "ab\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}",
            &said[..6],
        );
    }

    fn demo() -> TextModel {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
        ModelDir::open(&folder).unwrap().text().unwrap()
    }

    proptest! {
        #[test]
        fn what_was_seen_decodes_to_itself(
            ids in prop::collection::vec(prop_oneof![0u32..7, (0u32..256).prop_map(|byte| BYTES + byte)], 0..12),
            more in "[a-zü€漢 ]{0,6}", cut in any::<prop::sample::Index>(),
        ) {
            let tokens = [words(&ids), bytes(&more)].concat();
            let whole = decode(&ByteFallback, &tokens);
            let ends: Vec<usize> = whole.char_indices().map(|(at, _)| at).chain([whole.len()]).collect();
            let text = &whole[..*cut.get(&ends)];
            let ids = seen(&ByteFallback, &tokens, text);
            // What is malformed may have no ids: then none of it is there.
            let kept = decode(&ByteFallback, &ids);
            prop_assert!(kept == text || (text.contains('\u{FFFD}') && text.starts_with(&kept)), "{:?} of {:?}", kept, text);
        }

        #[test]
        fn so_it_does_with_a_real_tokenizer(
            said in "([A-Za-z]{1,9}|[ .,\n]|[0-9]|[äöüß€漢😀]){0,12}", cut in any::<prop::sample::Index>(),
        ) {
            let demo = demo();
            let tokens = demo.encode_raw(&said).unwrap();
            let ends: Vec<usize> = said.char_indices().map(|(at, _)| at).chain([said.len()]).collect();
            let text = &said[..*cut.get(&ends)];
            let ids = seen(&demo, &tokens, text);
            prop_assert_eq!(decode(&demo, &ids), text);
            // Nothing that was seen whole is computed again.
            let whole = (0..=tokens.len()).rev().find(|count| text.starts_with(&decode(&demo, &tokens[..*count])));
            prop_assert!(ids.starts_with(&tokens[..whole.unwrap()]));
        }
    }
}

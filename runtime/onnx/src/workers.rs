//! The threads that custom operators compute on.

/// A pool of threads that divides work into pieces.
pub(crate) trait Workers {
    /// Runs `work` for each of `0..total`, in any order, and returns when all are done.
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String>;
}

/// ONNX Runtime's own threads: a second pool would compete with them for the processors.
pub(crate) struct SessionThreads<'a>(pub(crate) &'a ort::operator::ComputeContext);

impl Workers for SessionThreads<'_> {
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String> {
        // 0: each piece is handed out by itself, for they differ in how fast they are done.
        self.0.par_for(total, 0, work).map_err(|error| error.to_string())
    }
}

/// The calling thread alone, last piece first: the order must not matter.
#[cfg(test)]
pub(crate) struct Alone;

#[cfg(test)]
impl Workers for Alone {
    fn each(&self, total: usize, work: impl Fn(usize) + Send + Sync) -> Result<(), String> {
        (0..total).rev().for_each(work);
        Ok(())
    }
}

/// A pointer that several threads write through, each at places of its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedPointer<T>(pub(crate) *mut T);

// SAFETY: what is written through it is divided among the threads by the pieces of work.
unsafe impl<T> Send for SharedPointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedPointer<T> {}

impl<T> SharedPointer<T> {
    /// The pointer `offset` elements further.
    #[inline]
    pub(crate) fn at(self, offset: usize) -> *mut T {
        self.0.wrapping_add(offset)
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )]

    use std::time::Duration;

    use ort::operator::{ComputeContext, Kernel, KernelContext, Operator, OperatorInput, OperatorOutput};
    use ort::session::Session;
    use ort::value::{Tensor, TensorElementType};
    use parking_lot::{Condvar, Mutex};
    use prost::Message;

    use super::*;
    use crate::custom_operators::{self, DOMAIN, domain};
    use crate::isa::Isa;
    use crate::library::Library;
    use crate::onnx_proto::{
        GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto, data_type,
    };

    const PIECES: usize = 64;
    /// How long a piece waits for the others: a test that fails takes as long.
    const TIMEOUT: Duration = Duration::from_secs(20);

    /// Pieces that are done, and what tells that there are more.
    #[derive(Default)]
    struct Done {
        pieces: Mutex<usize>,
        changed: Condvar,
    }

    /// An operator whose piece `slow` ends after all the others.
    struct OneSlowPiece;

    impl Operator for OneSlowPiece {
        type Kernel<'attr> = OneSlowPiece;

        fn name(&self) -> &'static str {
            "OneSlowPiece"
        }

        fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
            [OperatorInput::required(TensorElementType::Float32)]
        }

        fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
            [OperatorOutput::required(TensorElementType::Float32)]
        }

        fn create_kernel(&self, _: &KernelContext<'_>) -> ort::Result<OneSlowPiece> {
            Ok(OneSlowPiece)
        }
    }

    impl Kernel for OneSlowPiece {
        /// The input is the slow piece, the output the number of the others that were done when it ended.
        fn compute(&mut self, context: &ComputeContext) -> ort::Result<()> {
            let missing = || ort::Error::new("a tensor is missing");
            let input = context.input(0)?.ok_or_else(missing)?;
            let slow = input.try_extract_tensor::<f32>()?.1[0] as usize;
            let (done, seen) = (Done::default(), Mutex::new(0));
            let work = |piece: usize| {
                let mut pieces = done.pieces.lock();
                if piece == slow {
                    let is_short = |pieces: &mut usize| *pieces < PIECES - 1;
                    done.changed.wait_while_for(&mut pieces, is_short, TIMEOUT);
                    *seen.lock() = *pieces;
                } else {
                    *pieces += 1;
                    done.changed.notify_one();
                }
            };
            SessionThreads(context)
                .each(PIECES, work)
                .map_err(ort::Error::new)?;
            let mut output = context.output(0, [1usize])?.ok_or_else(missing)?;
            output.try_extract_tensor_mut::<f32>()?.1[0] = *seen.lock() as f32;
            Ok(())
        }
    }

    fn graph() -> Vec<u8> {
        let opset = [("", 21), (DOMAIN, 1)].map(|(domain, version)| OperatorSetIdProto {
            domain: domain.into(),
            version,
        });
        let node = NodeProto {
            op_type: "OneSlowPiece".into(),
            domain: DOMAIN.into(),
            input: vec!["slow".into()],
            output: vec!["seen".into()],
            ..NodeProto::default()
        };
        let graph = GraphProto {
            node: vec![node],
            name: "main".into(),
            input: vec![ValueInfoProto::tensor("slow", data_type::FLOAT, &["one"])],
            output: vec![ValueInfoProto::tensor("seen", data_type::FLOAT, &["one"])],
            ..GraphProto::default()
        };
        let model = ModelProto {
            ir_version: 10,
            graph: Some(graph),
            opset_import: opset.into(),
            ..ModelProto::default()
        };
        model.encode_to_vec()
    }

    /// A piece on a slow core holds up no other one: had each thread a share of its own, the pieces beside a slow one in its
    /// share would wait for it.
    #[test]
    fn pieces_do_not_wait_for_a_slow_one() {
        let Some(library) = Library::for_tests() else {
            return;
        };
        // In the domain of the others, for a session that adds one to the library's list must be alone.
        let isa = Isa::detect().unwrap_or(Isa::Scalar);
        let domain = domain(isa, 2).unwrap().add(OneSlowPiece).unwrap();
        let mut builder = Session::builder(library.environment())
            .unwrap()
            .with_intra_threads(2)
            .unwrap()
            .with_operators(domain)
            .unwrap();
        let mut session = custom_operators::commit(|| builder.commit_from_memory(&graph())).unwrap();
        for slow in [0, 1, PIECES / 2 - 1, PIECES / 2, PIECES - 1] {
            let input = Tensor::from_array(([1], vec![slow as f32])).unwrap();
            let outputs = session.run(ort::inputs!["slow" => input]).unwrap();
            let (_, seen) = outputs["seen"].try_extract_tensor::<f32>().unwrap();
            assert_eq!(seen, [(PIECES - 1) as f32], "piece {slow}");
        }
    }
}

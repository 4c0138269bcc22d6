// Names, the division of rows into blocks, bytes, and refusals.
#include "codec/quantized.h"

#include <set>

#include "codec/codec_fixture.h"

namespace agoq::codec {
namespace {

TEST(CodecNames, GoThereAndBack) {
  std::set<std::string_view> seen;
  for (int i = 0; i <= static_cast<int>(Codec::Dyn8Unsigned); ++i) {
    const auto codec = static_cast<Codec>(i);
    EXPECT_EQ(codec_from_name(name_of(codec)), codec);
    EXPECT_TRUE(seen.insert(name_of(codec)).second) << name_of(codec);
  }
  EXPECT_EQ(codec_from_name("fp4"), Codec::Fp4);
  EXPECT_EQ(codec_from_name("FP4"), std::nullopt);
  EXPECT_EQ(codec_from_name(""), std::nullopt);
}

TEST(CodecNames, PlainCodecStoresATypeAsItIs) {
  Arena arena(Device::Meta, 0);
  for (const DType dtype : {DType::F32, DType::BF16})
    EXPECT_EQ(allocate(arena, Owner::Operands, plain_codec(dtype), 2, RowBlocks(3)).plain().dtype, dtype);
  EXPECT_THROW(plain_codec(DType::F16), Error);
}

TEST(RowBlocks, CutSegmentsIntoBlocks) {
  const RowBlocks row(3 * 300, 300);
  EXPECT_EQ(row.segments(), 3);
  EXPECT_EQ(row.blocks(), 9);
  int64_t at = 0;
  for (int64_t b = 0; b < row.blocks(); ++b) {
    EXPECT_EQ(row.begin(b), at);
    EXPECT_EQ(row.size(b), b % 3 == 2 ? 44 : 128);
    at += row.size(b);
  }
  EXPECT_EQ(at, row.cols);
  EXPECT_EQ(RowBlocks(1).blocks(), 1);
  EXPECT_EQ(RowBlocks(256).size(1), 128);
  EXPECT_THROW(RowBlocks(100, 30), Error);
  EXPECT_THROW(RowBlocks(0), Error);
}

TEST(BlockBytes, FollowTheCodeWidth) {
  EXPECT_EQ(block_bytes(Codec::Fp4, 128), 64);
  EXPECT_EQ(block_bytes(Codec::Fp5, 128), 80);
  EXPECT_EQ(block_bytes(Codec::Fp6, 128), 96);
  EXPECT_EQ(block_bytes(Codec::Int8, 128), 128);
  EXPECT_EQ(block_bytes(Codec::Bf16, 128), 256);
  EXPECT_EQ(block_bytes(Codec::Fp32, 128), 512);
  EXPECT_EQ(block_bytes(Codec::Fp4, 3), 2);
  EXPECT_EQ(block_bytes(Codec::Fp5, 9), 5 + 2);
  EXPECT_EQ(block_bytes(Codec::Fp6, 5), 3 + 2);
  EXPECT_EQ(block_bytes(Codec::None, 128), 0);
  EXPECT_EQ(row_bytes(Codec::Fp6, RowBlocks(2 * 133, 133)), 2 * (96 + 5));
  EXPECT_EQ(row_bytes(Codec::Bf16, RowBlocks(2 * 133, 133)), 2 * 266);
}

TEST(Quantized, CountsWhatItHoldsOnMetaAndCpuAlike) {
  for (Codec codec : kAllCodecs) {
    Arena meta(Device::Meta, 0), cpu(Device::Cpu, 1 << 20);
    const RowBlocks row(1024);
    const Quantized planned = allocate(meta, Owner::Operands, codec, 10, row);
    const Quantized real = allocate(cpu, Owner::Operands, codec, 10, row);
    const auto bits = static_cast<size_t>(code_bits(codec));
    EXPECT_EQ(real.bytes(), 10 * 1024 * bits / 8 + (has_scales(codec) ? 10 * 8 * 2 : 0));
    EXPECT_EQ(planned.bytes(), real.bytes());
    EXPECT_EQ(meta.owned_bytes(), cpu.owned_bytes());
    EXPECT_EQ(planned.codes.data, nullptr);
  }
}

TEST(Quantized, NoneHoldsNothing) {
  Arena arena(Device::Cpu, 1 << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const Quantized q = allocate(arena, Owner::Operands, Codec::None, 10, RowBlocks(1024));
  EXPECT_FALSE(q.kept());
  EXPECT_EQ(q.bytes(), 0u);
  EXPECT_EQ(arena.owned_bytes(), 0u);
  zero(ctx, q);
  std::vector<float> x(10 * 1024);
  EXPECT_THROW(encode(ctx, host_tensor(x.data(), {10, 1024}), q), Error);
}

TEST(Quantized, RowRangeIsAView) {
  const std::vector<float> x = gaussian(6 * 200, 1);
  for (Codec codec : kAllCodecs) {
    OwnedQuantized q(codec, 6, RowBlocks(200));
    q.encode(suited(codec, x));
    const Quantized part = q.view().row_range(2, 5);
    EXPECT_EQ(part.rows, 3);
    std::vector<float> row(200), same(200);
    decode_row(part, 1, row.data());
    decode_row(q, 3, same.data());
    EXPECT_EQ(row, same);
  }
}

TEST(Quantized, PlainIsTheStoredTensor) {
  std::vector<float> x = gaussian(2 * 300, 1);
  OwnedQuantized fp32(Codec::Fp32, 2, RowBlocks(300, 100)), bf16(Codec::Bf16, 2, RowBlocks(300, 100));
  OwnedQuantized fp4(Codec::Fp4, 2, RowBlocks(300));
  fp32.encode(x);
  bf16.encode(x);
  EXPECT_EQ(fp32.view().plain().shape, (Shape{2, 300}));
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(fp32.view().plain().as<float>()[i], x[i]);
    EXPECT_EQ(bf16.view().plain().as<Bf16>()[i].bits, to_bf16(x[i]).bits);
  }
  EXPECT_THROW(fp4.view().plain(), Error);
}

TEST(Quantized, WrongShapesTypesAndDevicesAreRefused) {
  Arena arena(Device::Cpu, 1 << 20);
  const Context ctx(arena, Device::Cpu, DType::F32);
  OwnedQuantized q(Codec::Int8, 4, RowBlocks(128));
  std::vector<float> x(4 * 128);
  EXPECT_THROW(encode(ctx, host_tensor(x.data(), {2, 256}), q), Error);
  EXPECT_THROW(decode(ctx, q, host_tensor(x.data(), {3, 128})), Error);
  Tensor wrong = host_tensor(x.data(), {4, 128});
  wrong.dtype = DType::I32;
  EXPECT_THROW(encode(ctx, wrong, q), Error);
  Tensor gpu = host_tensor(x.data(), {4, 128});
  gpu.device = Device::Cuda;
  EXPECT_THROW(encode(ctx, gpu, q), Error);
  Quantized on_gpu = q.view();
  on_gpu.device = Device::Cuda;
  try {
    encode(ctx, gpu, on_gpu);
    FAIL() << "a context of the CPU took a GPU tensor";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("encode on cpu"), std::string::npos) << error.what();
  }
}

TEST(Quantized, MetaChecksAndDoesNothing) {
  Arena arena(Device::Meta, 0);
  const Context ctx(arena, Device::Cpu, DType::F32);
  const Scope scope(ctx);
  const Quantized q = push(ctx, Codec::Fp4, 8, RowBlocks(256));
  const Tensor x = ctx.empty({8, 256});
  encode(ctx, x, q);
  decode(ctx, q, x);
  zero(ctx, q);
  EXPECT_THROW(encode(ctx, ctx.empty({8, 255}), q), Error);
  EXPECT_GT(arena.peak_stack_bytes(), 0u);
}

}  // namespace
}  // namespace agoq::codec

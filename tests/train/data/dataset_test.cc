#include "train/data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <map>
#include <numeric>
#include <set>

#include "train/data_files.h"

namespace agoq::train {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<int64_t> counting(int64_t first, int64_t count) {
  std::vector<int64_t> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

BatchSpec spec_of(int64_t batch, int64_t length) {
  BatchSpec spec;
  spec.micro_batch_size = batch;
  spec.sequence_length = length;
  return spec;
}

DataConfig config_of(std::vector<std::string> path, double valid_fraction = 0) {
  DataConfig config;
  config.data_path = std::move(path);
  config.valid_fraction = valid_fraction;
  config.seed = 11;
  return config;
}

// Tokens and last target: the S + 1 tokens of a sample.
std::vector<int32_t> sample(const Dataset& data, uint64_t global) {
  BatchSpec one = data.spec();
  one.micro_batch_size = 1;
  Batch batch(data.spec());
  data.fill(global, 0, batch);
  const auto length = static_cast<size_t>(one.sequence_length);
  std::vector<int32_t> tokens(batch.tokens.begin(), batch.tokens.begin() + static_cast<int64_t>(length));
  for (size_t t = 0; t + 1 < length; ++t) EXPECT_EQ(batch.targets[t], batch.tokens[t + 1]);
  tokens.push_back(batch.targets[length - 1]);
  return tokens;
}

class DatasetTest : public ::testing::Test {
 protected:
  // A file whose token i is first + i.
  std::string file(const std::string& name, int64_t first, int64_t count) {
    write_plainly(scratch_.file(name + ".bin"), raw_tokens<uint16_t>(counting(first, count)));
    return scratch_.file(name + ".bin");
  }
  ScratchFolder scratch_;
};

TEST_F(DatasetTest, CutsSamplesAsMegatronDoes) {
  const Dataset data = open_evaluation_dataset(config_of({file("a", 100, 14)}), spec_of(1, 4));
  EXPECT_EQ(data.samples(), 3u);  // 13 = 3 * 4 + 1 tokens, one is left over
  EXPECT_THAT(sample(data, 0), ElementsAre(100, 101, 102, 103, 104));
  EXPECT_THAT(sample(data, 1), ElementsAre(104, 105, 106, 107, 108));
  EXPECT_THAT(sample(data, 2), ElementsAre(108, 109, 110, 111, 112));
  EXPECT_EQ(sample(data, 3), sample(data, 0));
}

TEST_F(DatasetTest, EveryEpochHoldsEverySampleOnceInItsOwnOrder) {
  const Datasets data = open_datasets(config_of({file("a", 0, 2001)}), spec_of(1, 10));
  const uint64_t n = data.train.samples();
  ASSERT_EQ(n, 200u);
  std::vector<std::vector<int32_t>> epochs;
  for (uint64_t epoch = 0; epoch < 3; ++epoch) {
    std::vector<int32_t> firsts;
    for (uint64_t i = 0; i < n; ++i) firsts.push_back(sample(data.train, epoch * n + i)[0]);
    EXPECT_EQ(std::set<int32_t>(firsts.begin(), firsts.end()).size(), n);
    epochs.push_back(firsts);
  }
  EXPECT_NE(epochs[0], epochs[1]);
  EXPECT_NE(epochs[1], epochs[2]);
  DataConfig other = config_of({scratch_.file("a.bin")});
  other.seed = 12;
  EXPECT_NE(sample(open_datasets(other, spec_of(1, 10)).train, 0), sample(data.train, 0));
}

TEST_F(DatasetTest, TheOrderDoesNotDependOnTheMesh) {
  const std::string path = file("a", 0, 5001);
  const Dataset whole = open_datasets(config_of({path}), spec_of(8, 16)).train;
  const Dataset half = open_datasets(config_of({path}), spec_of(2, 16)).train;
  Batch large(whole.spec());
  for (uint64_t step = 0; step < 5; ++step) {
    whole.fill(step * 8, large);
    std::vector<int32_t> joined;
    for (uint64_t rank = 0; rank < 4; ++rank) {
      Batch small(half.spec());
      half.fill(step * 8 + rank * 2, small);
      joined.insert(joined.end(), small.tokens.begin(), small.tokens.end());
    }
    EXPECT_EQ(joined, large.tokens);
  }
}

TEST_F(DatasetTest, TrainingAndValidationShareNoToken) {
  for (const int64_t tokens : {31, 40, 41, 100, 101, 997}) {
    for (const double fraction : {0.01, 0.1, 0.5}) {
      const Datasets data = open_datasets(config_of({file("a", 0, tokens)}, fraction), spec_of(1, 10));
      std::set<int32_t> trained, held_out;
      for (uint64_t g = 0; g < data.train.samples(); ++g)
        for (const int32_t t : sample(data.train, g)) trained.insert(t);
      for (uint64_t g = 0; g < data.valid->samples(); ++g)
        for (const int32_t t : sample(*data.valid, g)) held_out.insert(t);
      EXPECT_LT(*trained.rbegin(), *held_out.begin()) << tokens << " tokens, fraction " << fraction;
      EXPECT_EQ(*held_out.rbegin(), tokens - 1);
      const double share = static_cast<double>(data.valid->samples()) / static_cast<double>((tokens - 1) / 10);
      EXPECT_LT(std::abs(share - fraction), 1.0 / static_cast<double>((tokens - 1) / 10) + 1e-9);
    }
  }
}

TEST_F(DatasetTest, ValidationRunsInOrderAndMayHaveItsOwnFile) {
  DataConfig config = config_of({file("a", 0, 1000)}, 0.5);
  config.valid_data_path = {file("v", 5000, 101)};
  const Datasets data = open_datasets(config, spec_of(1, 10));
  EXPECT_EQ(data.train.samples(), 99u);
  for (uint64_t g = 0; g < 10; ++g) EXPECT_EQ(sample(*data.valid, g)[0], 5000 + static_cast<int32_t>(g) * 10);
  EXPECT_FALSE(open_datasets(config_of({file("a", 0, 1000)}, 0), spec_of(1, 10)).valid.has_value());
}

TEST_F(DatasetTest, BlendsByWeightAndEachSourceHasItsOwnEpochs) {
  const DataConfig config = config_of({"0.7", file("a", 0, 1001), "0.3", file("b", 20000, 101)});
  const Dataset data = open_datasets(config, spec_of(1, 10)).train;
  std::map<int32_t, int> seen;
  int from_b = 0;
  for (uint64_t g = 0; g < 1000; ++g) {
    const int32_t first = sample(data, g)[0];
    from_b += first >= 20000;
    ++seen[first];
  }
  EXPECT_EQ(from_b, 300);
  for (const auto& [first, times] : seen) EXPECT_EQ(times, first >= 20000 ? 30 : 7) << first;
}

TEST_F(DatasetTest, KnowsWhenItBeginsToRepeat) {
  const DataConfig config = config_of({"0.7", file("a", 0, 1001), "0.3", file("b", 20000, 251)});
  const Dataset data = open_evaluation_dataset(config, spec_of(1, 10));
  std::set<int32_t> seen;
  uint64_t g = 0;
  while (seen.insert(sample(data, g)[0]).second) ++g;
  EXPECT_EQ(data.samples_without_repetition(), g);
  EXPECT_EQ(data.samples(), 125u);
  EXPECT_EQ(open_evaluation_dataset(config_of({file("c", 0, 101)}), spec_of(1, 10)).samples_without_repetition(), 10u);
}

TEST_F(DatasetTest, SequencesOfABatchAreKeptApart) {
  const Dataset data = open_evaluation_dataset(config_of({file("a", 0, 100)}), spec_of(3, 4));
  Batch batch(data.spec());
  data.fill(0, batch);
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8));
  EXPECT_EQ(batch.target_weight(), 12);
}

TEST_F(DatasetTest, BatchesOfAStepAreFilledInPlace) {
  BatchSpec spec = spec_of(2, 4);
  spec.eod_token = 13;
  spec.reset_position_ids = spec.reset_attention_mask = spec.eod_mask_loss = true;
  const Dataset data = open_datasets(config_of({file("a", 0, 200)}), spec).train;
  StepBatches batches(data, 6);
  std::vector<const int32_t*> arrays;
  for (const Batch& batch : batches.fill(0)) arrays.push_back(batch.tokens.data());
  ASSERT_EQ(arrays.size(), 3u);
  for (const int64_t step : {3, 1, 4}) {
    const std::span<Batch> filled = batches.fill(step);
    for (size_t i = 0; i < filled.size(); ++i) {
      Batch fresh(spec);
      data.fill(static_cast<uint64_t>(step) * 6 + i * 2, fresh);
      EXPECT_EQ(filled[i].tokens.data(), arrays[i]) << "no new array";
      EXPECT_EQ(filled[i].tokens, fresh.tokens);
      EXPECT_EQ(filled[i].targets, fresh.targets);
      EXPECT_EQ(filled[i].loss_weights, fresh.loss_weights) << "what an earlier step masked is forgotten";
      EXPECT_EQ(filled[i].positions, fresh.positions);
      EXPECT_EQ(filled[i].document_start, fresh.document_start);
    }
  }
}

TEST_F(DatasetTest, ResetFlagsActBehindEndOfDocumentTokens) {
  const std::string path = scratch_.file("e.bin");
  write_plainly(path, raw_tokens<uint16_t>({9, 1, 0, 2, 3, 0, 0, 4, 5, 6, 7, 8, 0}));
  BatchSpec spec = spec_of(2, 6);
  spec.eod_token = 0;
  Batch batch(spec);
  const auto fill = [&] { open_evaluation_dataset(config_of({path}), spec).fill(0, batch); };
  fill();
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 0, 0, 0, 0, 6, 6, 6, 6, 6, 6));
  EXPECT_EQ(batch.target_weight(), 12);
  spec.reset_position_ids = true;
  fill();
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 3, 4));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 0, 0, 0, 0, 6, 6, 6, 6, 6, 6));
  spec.reset_position_ids = false;
  spec.reset_attention_mask = true;
  fill();
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 0, 3, 3, 3, 6, 7, 7, 7, 7, 7));
  spec.eod_mask_loss = true;
  fill();
  EXPECT_THAT(batch.loss_weights, ElementsAre(1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 1, 1));
  spec.eod_token = -1;
  EXPECT_THAT(error_of(fill), AllOf(HasSubstr("e.bin does not store where documents begin"), HasSubstr("--eod-token")));
}

// Conversations whose turns all end with 0, as ChatML's do: each is one document, and only the index knows.
TEST_F(DatasetTest, AnIndexDividesDocumentsWhereverTheEndTokenStands) {
  write_megatron(scratch_.file("chat"), {{9, 1, 0, 2, 0}, {}, {3, 0, 4}, {5, 0, 6, 7, 0}});
  BatchSpec spec = spec_of(2, 6);
  spec.eod_token = 0;
  spec.reset_position_ids = spec.reset_attention_mask = spec.eod_mask_loss = true;
  Batch batch(spec);
  const auto fill = [&] { open_evaluation_dataset(config_of({scratch_.file("chat")}), spec).fill(0, batch); };
  fill();
  EXPECT_THAT(batch.tokens, ElementsAre(9, 1, 0, 2, 0, 3, 0, 4, 5, 0, 6, 7));
  EXPECT_THAT(batch.positions, ElementsAre(0, 1, 2, 3, 4, 0, 0, 1, 0, 1, 2, 3));
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 0, 0, 0, 5, 6, 6, 8, 8, 8, 8));
  EXPECT_THAT(batch.loss_weights, ElementsAre(1, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1));
  spec.eod_token = -1;
  const Batch with_token = batch;
  fill();
  EXPECT_EQ(batch.document_start, with_token.document_start) << "no end token is needed";
  spec.eod_token = 0;
  spec.only_eod_token = true;
  fill();
  EXPECT_THAT(batch.document_start, ElementsAre(0, 0, 0, 3, 3, 5, 6, 7, 7, 7, 10, 10)) << "as older runs began";
}

TEST_F(DatasetTest, DocumentsOfMaskedDataAreApartUnlessAFlagSaysOtherwise) {
  const auto write = [&](const std::string& name) {
    write_megatron(scratch_.file(name), {{1, 2, 3}, {4, 5, 6, 7}});
    return scratch_.file(name);
  };
  const std::string plain = write("plain"), masked = write("masked");
  write_plainly(masked + ".mask", std::string(7, '\1'));
  BatchSpec spec = spec_of(1, 6);
  Batch batch(spec);
  const auto fill = [&](const std::vector<std::string>& path, uint64_t sample) {
    open_evaluation_dataset(config_of(path), spec).fill(sample, batch);
    return std::pair(batch.positions[4], batch.document_start[4]);
  };
  const std::pair<int32_t, int32_t> together{4, 0}, apart{1, 3};
  EXPECT_EQ(fill({plain}, 0), together);
  EXPECT_EQ(fill({masked}, 0), apart);
  std::vector<std::pair<int32_t, int32_t>> blended = {fill({"1", plain, "1", masked}, 0),
                                                      fill({"1", plain, "1", masked}, 1)};
  EXPECT_THAT(blended, ElementsAre(together, apart)) << "each source by itself";
  spec.reset_position_ids = spec.reset_attention_mask = false;
  EXPECT_EQ(fill({masked}, 0), together);
  spec.reset_position_ids = spec.reset_attention_mask = true;
  EXPECT_EQ(fill({plain}, 0), apart);
}

TEST_F(DatasetTest, WarnsWhereBordersAreAskedForThatNothingStores) {
  write_plainly(scratch_.file("a.txt"), "one\n---\ntwo\n");
  write_megatron(scratch_.file("m"), {{1, 2, 3}});
  BatchSpec spec = spec_of(1, 2);
  spec.eod_token = 7;
  DataConfig config = config_of({file("flat", 0, 10)});
  const auto warnings = [&] { return open_evaluation_dataset(config, spec).warnings(); };
  EXPECT_THAT(warnings(), ElementsAre());
  spec.reset_attention_mask = true;
  EXPECT_THAT(warnings(), ElementsAre(AllOf(HasSubstr("flat.bin does not store"), HasSubstr("token 7 "))));
  config.data_path = {scratch_.file("m")};
  EXPECT_THAT(warnings(), ElementsAre(AllOf(HasSubstr("m.bin is one document"), HasSubstr("change nothing"))));
  write_megatron(scratch_.file("m"), {{1, 2, 3}, {4, 5}});
  EXPECT_THAT(warnings(), ElementsAre());
  config.data_path = {scratch_.file("a.txt")};
  EXPECT_THAT(warnings(), ElementsAre(HasSubstr("a.txt stores no document borders")));
  config.files.document_separator = "---";
  EXPECT_THAT(warnings(), ElementsAre());
}

TEST_F(DatasetTest, DataInWhichNothingCountsIsRefused) {
  write_megatron(scratch_.file("m"), {counting(1, 21)});
  const auto refused = [&](const std::string& mask, double valid_fraction, uint64_t counted = 0,
                           bool masks_eod = false) {
    write_plainly(scratch_.file("m.mask"), mask);
    BatchSpec spec = spec_of(1, 4);
    spec.eod_mask_loss = masks_eod;
    const Datasets data = open_datasets(config_of({scratch_.file("m")}, valid_fraction), spec);
    const std::string training = error_of([&] { data.train.require_targets(); });
    return training.empty() && data.valid ? "valid: " + error_of([&] { data.valid->require_targets(counted); })
                                          : training;
  };
  const auto ones_at = [](const std::vector<size_t>& places) {
    std::string mask(21, '\0');
    for (const size_t place : places) mask[place] = '\1';
    return mask;
  };
  EXPECT_THAT(refused(ones_at({}), 0), AllOf(HasSubstr("tokens 0 to 20"), HasSubstr("m.bin"), HasSubstr("m.mask")));
  EXPECT_THAT(refused(ones_at({0}), 0), HasSubstr("nothing counts")) << "the first token is nobody's target";
  EXPECT_EQ(refused(ones_at({20}), 0), "");
  // 2 of 5 samples are held out: tokens 12 to 20, and 0 to 8 are for training.
  EXPECT_THAT(refused(ones_at({15}), 0.4), HasSubstr("tokens 0 to 8"));
  EXPECT_THAT(refused(ones_at({8, 12}), 0.4), AllOf(HasSubstr("valid: "), HasSubstr("tokens 12 to 20")));
  EXPECT_EQ(refused(ones_at({8, 17}), 0.4), "valid: ");
  EXPECT_THAT(refused(ones_at({8, 17}), 0.4, 1), HasSubstr("in the first 1 samples"));
  EXPECT_EQ(refused(ones_at({8, 17}), 0.4, 2), "valid: ");
  // Every target is a document's first token.
  write_megatron(scratch_.file("m"), std::vector<std::vector<int64_t>>(21, {5}));
  EXPECT_EQ(refused(std::string(21, '\1'), 0), "");
  EXPECT_THAT(refused(std::string(21, '\1'), 0, 0, true), HasSubstr("--eod-mask-loss"));
}

TEST_F(DatasetTest, UnevenMasksWeighTheTargetWhateverTheBatchSize) {
  const std::vector<int64_t> tokens = counting(1, 25);
  std::string mask;
  for (const int64_t t : tokens) mask.push_back(t % 3 == 0 || t > 20 ? '\1' : '\0');
  write_megatron(scratch_.file("chat"), {tokens});
  write_plainly(scratch_.file("chat.mask"), mask);
  const auto dataset = [&](int64_t batch) {
    return open_evaluation_dataset(config_of({scratch_.file("chat")}), spec_of(batch, 4));
  };
  const Dataset whole = dataset(6);
  Batch large(whole.spec());
  whole.fill(0, large);
  std::vector<float> joined;
  double weight = 0;
  for (uint64_t g = 0; g < 6; ++g) {
    Batch one(dataset(1).spec());
    dataset(1).fill(g, one);
    for (size_t t = 0; t < 4; ++t) EXPECT_EQ(one.loss_weights[t], one.targets[t] % 3 == 0 || one.targets[t] > 20);
    joined.insert(joined.end(), one.loss_weights.begin(), one.loss_weights.end());
    weight += one.target_weight();
  }
  EXPECT_EQ(joined, large.loss_weights);
  EXPECT_EQ(weight, large.target_weight());
  EXPECT_EQ(weight, std::count_if(tokens.begin() + 1, tokens.end(), [](int64_t t) { return t % 3 == 0 || t > 20; }));
}

TEST_F(DatasetTest, DataPathIsOneFileOrWeightsAndFiles) {
  EXPECT_EQ(parse_data_path({"a"}).size(), 1u);
  const auto two = parse_data_path({"0.7", "a", "3e-1", "b c"});
  EXPECT_EQ(two[1].weight, 0.3);
  EXPECT_EQ(two[1].path, "b c");
  for (const auto& words : std::vector<std::vector<std::string>>{
           {}, {"a", "b"}, {"0.7", "a", "b"}, {"-1", "a"}, {"0", "a"}, {"nan", "a"}, {"0.7x", "a"}})
    EXPECT_THROW(parse_data_path(words), Error);
}

TEST_F(DatasetTest, TooLittleDataIsAClearError) {
  const std::string path = file("a", 0, 10);
  EXPECT_THAT(error_of([&] { open_datasets(config_of({path}), spec_of(1, 10)); }),
              AllOf(HasSubstr("a.bin has 10 tokens"), HasSubstr("needs 11")));
  EXPECT_THAT(error_of([&] { open_datasets(config_of({path}, 0.1), spec_of(1, 9)); }),
              HasSubstr("a.bin has 10 tokens: too few to hold out"));
  write_plainly(scratch_.file("empty.txt"), "");
  EXPECT_THAT(error_of([&] { open_datasets(config_of({scratch_.file("empty.txt")}), spec_of(1, 9)); }),
              HasSubstr("has 0 tokens"));
}

TEST_F(DatasetTest, IdentityTellsDataApart) {
  const auto identity = [&](int64_t first, const BatchSpec& spec) {
    return open_datasets(config_of({file("a", first, 100)}), spec).train.identity();
  };
  EXPECT_EQ(identity(0, spec_of(1, 8)), identity(0, spec_of(2, 8)));
  EXPECT_NE(identity(0, spec_of(1, 8)), identity(1, spec_of(1, 8)));
  EXPECT_NE(identity(0, spec_of(1, 8)), identity(0, spec_of(1, 9)));
  const auto blend = [&](const char* weight) {
    return open_datasets(config_of({"0.5", file("a", 0, 100), weight, file("b", 100, 100)}), spec_of(1, 8))
        .train.identity();
  };
  EXPECT_EQ(blend("0.5"), blend("5e-1"));
  EXPECT_NE(blend("0.5"), blend("0.4"));
  const std::string before = identity(0, spec_of(1, 8));
  std::filesystem::copy(file("a", 0, 100), scratch_.file("renamed.bin"));
  EXPECT_EQ(open_datasets(config_of({scratch_.file("renamed.bin")}), spec_of(1, 8)).train.identity(), before);
}

// The same tokens in the same file, read in another order or divided otherwise.
TEST_F(DatasetTest, IdentityHoldsTheIndex) {
  const auto identity = [&] { return open_datasets(config_of({scratch_.file("m")}), spec_of(1, 4)).train.identity(); };
  write_megatron(scratch_.file("m"), {{1, 2, 3}, {4, 5, 6}});
  const std::string before = identity();
  EXPECT_EQ(identity(), before);
  std::string index = read_plainly(scratch_.file("m.idx"));
  const int64_t swapped[] = {6, 0};
  std::memcpy(&index[34 + 2 * 4], swapped, sizeof(swapped));
  write_plainly(scratch_.file("m.idx"), index);
  EXPECT_NE(identity(), before);
  write_megatron(scratch_.file("m"), {{1, 2}, {3, 4, 5, 6}});
  EXPECT_NE(identity(), before);
  write_megatron(scratch_.file("m"), {{1, 2, 3}, {4, 5, 6}});
  EXPECT_EQ(identity(), before);
  write_plainly(scratch_.file("m.mask"), std::string(6, '\1'));
  EXPECT_NE(identity(), before);
}

}  // namespace
}  // namespace agoq::train

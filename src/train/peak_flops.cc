#include "train/peak_flops.h"

namespace agoq::train {

double datasheet_peak_flops(std::string_view gpu) {
  struct PeakRow {
    std::string_view name;
    double tflops;
  };
  // The longer name first where one begins another. "H100 PCIe" and "H100 NVL" are slower parts than the SXM module.
  static constexpr PeakRow kRows[] = {{"B200", 2250},    {"GH200", 989},     {"H200", 989},     {"H100 PCIe", 756},
                                      {"H100 NVL", 835}, {"H100", 989},      {"H800", 989},     {"H20", 148},
                                      {"A100", 312},     {"A800", 312},      {"A40", 150},      {"L40S", 362},
                                      {"L40", 181},      {"L4", 121},        {"RTX 4090", 165}, {"RTX 3090", 71},
                                      {"RTX 5090", 210}, {"RTX A6000", 155}, {"A10", 125}};
  for (const PeakRow& row : kRows)
    if (gpu.find(row.name) != std::string_view::npos) return row.tflops * 1e12;
  return 0;
}

}  // namespace agoq::train

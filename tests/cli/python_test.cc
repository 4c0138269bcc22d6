// The commands written in Python: which interpreter runs them, and what is said when packages are missing.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>

#include "cli/program.h"

namespace agoq {
namespace {

namespace fs = std::filesystem;
using test::Ran;
using testing::HasSubstr;

// A copy of the program beside its Python modules, without a .venv; `python3` is what a test puts on the PATH.
class PythonTest : public testing::Test {
 protected:
  PythonTest() {
    fs::create_directories(folder_.file("project/build"));
    fs::copy(AGOQ_PROGRAM, program());
    fs::copy(fs::path(AGOQ_SOURCES) / "python", folder_.file("project/python"), fs::copy_options::recursive);
    write_plainly(folder_.file("project/Makefile"), "");
    fs::create_directories(folder_.file("none"));
    write_script("bare", "exec /usr/bin/python3 -S \"$@\"");  // no packages at all
  }
  void SetUp() override {
    if (!fs::exists("/usr/bin/python3")) GTEST_SKIP() << "no Python to test with";
  }
  std::string program() const { return folder_.file("project/build/agoq"); }

  void write_script(const std::string& folder, const std::string& text) {
    fs::create_directories(folder_.file(folder));
    const std::string file = folder_.file(folder) + "/python3";
    write_plainly(file, "#!/bin/sh\n" + text + "\n");
    fs::permissions(file, fs::perms::owner_all);
  }
  // Packages that are only names.
  void make_packages(const std::string& folder, const std::vector<std::string>& names) {
    for (const std::string& name : names) {
      fs::create_directories(folder_.file(folder) + "/" + name + "-9.9.dist-info");
      write_plainly(folder_.file(folder) + "/" + name + "-9.9.dist-info/METADATA",
                    "Metadata-Version: 2.1\nName: " + name + "\nVersion: 9.9\n");
      fs::create_directories(folder_.file(folder) + "/" + name);
      write_plainly(folder_.file(folder) + "/" + name + "/__init__.py", "class tqdm: pass\n");
    }
  }
  Ran run(const std::vector<std::string>& arguments, const std::string& path, const std::string& environment = "") {
    return test::run_agoq(
        arguments,
        {.before = "unset AGOQ_PYTHON PYTHONPATH; export PATH=" + path + "; " + environment, .program = program()});
  }
  std::string on(const std::string& folder) const { return folder_.file(folder); }

  ScratchFolder folder_;
};

void expect_one_line(const Ran& ran, const std::string& text) {
  EXPECT_EQ(ran.status, 1);
  EXPECT_THAT(ran.err, HasSubstr(text));
  EXPECT_EQ(std::count(ran.err.begin(), ran.err.end(), '\n'), 1) << ran.err;
}

TEST_F(PythonTest, MissingPackagesAreNamedWithTheRemedy) {
  const std::string remedy = "run `make -C " + folder_.file("project") + " venv`";
  const Ran data = run({"data", "x.txt", "--tokenizer", "byte", "--output", "y"}, on("bare"));
  expect_one_line(data, "agoq data: error: ");
  EXPECT_THAT(data.err, testing::AllOf(HasSubstr("lacks the package 'numpy'"), HasSubstr(remedy)));
  fs::create_directories(on("run"));
  write_plainly(on("run") + "/metrics.jsonl", "{\"step\":1,\"loss\":2.0}\n");
  const Ran report = run({"report", on("run")}, on("bare"));
  expect_one_line(report, "agoq report: error: ");
  EXPECT_THAT(report.err, testing::AllOf(HasSubstr("lacks the package 'matplotlib'"), HasSubstr(remedy)));
  fs::remove(folder_.file("project/Makefile"));  // installed, without sources
  EXPECT_THAT(run({"report", on("run")}, on("bare")).err,
              HasSubstr("-m pip install -r " + folder_.file("project/python/requirements.txt")));
}

// Files of the current folder and of PYTHONPATH that have the names of our modules, or of Python's own.
TEST_F(PythonTest, OurModulesAreThoseOfTheProgram) {
  make_packages("packages", {"numpy", "tqdm", "tokenizers", "jinja2", "matplotlib", "safetensors", "tensorboard"});
  write_script("full", "PYTHONPATH=$PYTHONPATH:" + on("packages") + " exec /usr/bin/python3 \"$@\"");
  const std::vector<std::string> ours = {"agoq/__init__", "agoq/__main__", "agoq/data"};
  const std::vector<std::string> pythons = {"runpy", "csv", "email", "sitecustomize"};
  const auto shadow = [&](const std::string& folder, const std::vector<std::string>& names) {
    fs::create_directories(on(folder) + "/agoq");
    for (const std::string& name : names)
      write_plainly(on(folder) + "/" + name + ".py", "import sys\nsys.exit('" + name + " of " + folder + "')\n");
  };
  shadow("inherited", ours);
  shadow("here", ours);
  shadow("here", pythons);
  const std::string here = "cd " + on("here") + "; ";
  for (const std::string& path : {std::string(), on("inherited"), ":" + on("inherited"), on("inherited") + "::"}) {
    const Ran help = run({"data", "--help"}, on("full"), here + "export PYTHONPATH=" + path + "; ");
    EXPECT_EQ(help.status, 0) << path << ": " << help.err;
    EXPECT_THAT(help.out, HasSubstr("usage: agoq data")) << path;
  }
}

TEST_F(PythonTest, NoPythonAtAllIsOneLine) {
  const Ran ran = run({"data", "--help"}, on("none"));
  expect_one_line(ran, "there is no Python 3 on the PATH: `sudo apt-get install python3 python3-venv`");
  EXPECT_EQ(ran.out, "");
  EXPECT_THAT(run({"doctor"}, on("none")).out, HasSubstr("MISSING"));
}

TEST_F(PythonTest, ThePythonOnThePathThatHasThePackagesIsTaken) {
  make_packages("packages", {"numpy", "tqdm", "tokenizers", "jinja2", "matplotlib", "safetensors", "tensorboard"});
  make_packages("some", {"numpy", "tqdm"});
  write_script("broken", "echo broken >&2; exit 1");
  write_script("partly", "PYTHONPATH=$PYTHONPATH:" + on("some") + " exec /usr/bin/python3 -S \"$@\"");
  write_script("full", "PYTHONPATH=$PYTHONPATH:" + on("packages") + " exec /usr/bin/python3 -S \"$@\"");
  const auto taken = [&](const std::string& path, const std::string& environment = "") {
    const std::string out = run({"doctor"}, path, environment).out;
    const size_t at = out.find(" at /", out.find("Python"));
    return at == std::string::npos ? out : out.substr(at + 4, out.find('\n', at) - at - 4);
  };
  const auto path = [&](const std::vector<std::string>& folders) {
    std::vector<std::string> places;
    for (const std::string& folder : folders) places.push_back(on(folder));
    return join(places, ":");
  };
  EXPECT_EQ(taken(path({"bare", "broken", "partly", "full"})), on("full") + "/python3");
  EXPECT_EQ(taken(path({"none", "bare", "partly"})), on("partly") + "/python3");
  EXPECT_EQ(taken(path({"full"}), "export AGOQ_PYTHON=" + on("bare") + "/python3; "), on("bare") + "/python3");
  const Ran help = run({"data", "--help"}, path({"bare", "broken", "full"}));
  EXPECT_EQ(help.status, 0);
  EXPECT_EQ(help.err, "") << "what a broken Python says is of no interest";
  EXPECT_THAT(help.out, HasSubstr("usage: agoq data"));
  // A half-made .venv does not stand in the way.
  fs::create_directories(folder_.file("project/.venv/bin"));
  fs::copy(on("bare") + "/python3", folder_.file("project/.venv/bin/python"));
  EXPECT_EQ(taken(path({"full"})), on("full") + "/python3");
  EXPECT_EQ(taken(path({"none"})), folder_.file("project/.venv/bin/python"));
}

}  // namespace
}  // namespace agoq

// Runs ranks as real processes of this machine.
#pragma once

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <exception>
#include <functional>
#include <string>
#include <vector>

#include "base/error.h"
#include "base/file_descriptor.h"
#include "comm/launch/connect.h"
#include "comm/transport/sockets.h"

namespace agoq::comm {

// Children of this process, one per rank. What a rank returns, or "error: ..." for what it throws, is its text.
class Processes {
 public:
  using Main = std::function<std::string(int rank)>;

  Processes(int count, const Main& main) {
    for (int rank = 0; rank < count; ++rank) {
      std::array<int, 2> pipe;
      require(::pipe(pipe.data()) == 0, "pipe");
      FileDescriptor from(pipe[0]), to(pipe[1]);
      const pid_t child = ::fork();
      require(child >= 0, "fork");
      if (child == 0) be_rank(rank, main, to);
      children_.push_back({child, std::move(from), ""});
    }
  }
  Processes(const Processes&) = delete;
  Processes& operator=(const Processes&) = delete;
  ~Processes() {
    for (int rank = 0; rank < static_cast<int>(children_.size()); ++rank) signal(rank, SIGKILL);
    texts();
  }

  void signal(int rank, int number) {
    if (child(rank).id > 0) ::kill(child(rank).id, number);
  }

  // Waits until a rank has ended.
  const std::string& text(int rank) {
    Child& it = child(rank);
    if (it.id <= 0) return it.text;
    std::array<char, 4096> bytes;
    for (ssize_t count = 0; (count = ::read(it.out.get(), bytes.data(), bytes.size())) > 0;)
      it.text.append(bytes.data(), static_cast<size_t>(count));
    int status = 0;
    ::waitpid(it.id, &status, 0);
    it.id = 0;
    return it.text;
  }
  std::vector<std::string> texts() {
    std::vector<std::string> all;
    for (int rank = 0; rank < static_cast<int>(children_.size()); ++rank) all.push_back(text(rank));
    return all;
  }

 private:
  struct Child {
    pid_t id;
    FileDescriptor out;
    std::string text;
  };
  Child& child(int rank) { return children_[static_cast<size_t>(rank)]; }

  [[noreturn]] static void be_rank(int rank, const Main& main, const FileDescriptor& to) {
    std::string text;
    try {
      text = main(rank);
    } catch (const std::exception& e) {
      text = std::string("error: ") + e.what();
    }
    [[maybe_unused]] const ssize_t written = ::write(to.get(), text.data(), text.size());
    ::_exit(0);
  }

  std::vector<Child> children_;
};

// What a process waits for until its parent has done something.
class Gate {
 public:
  Gate() {
    std::array<int, 2> pipe;
    require(::pipe(pipe.data()) == 0, "pipe");
    in_ = FileDescriptor(pipe[0]);
    out_ = FileDescriptor(pipe[1]);
  }
  void wait() const {
    char byte = 0;
    [[maybe_unused]] const ssize_t count = ::read(in_.get(), &byte, 1);
  }
  void open() const {  // for one process
    [[maybe_unused]] const ssize_t count = ::write(out_.get(), "x", 1);
  }

 private:
  FileDescriptor in_, out_;
};

inline Launch launch_of(int rank, int world, int port) {
  return {.rank = rank, .world = world, .local_rank = rank, .local_world = world, .master_port = port};
}

// Free a moment ago.
inline int free_port() {
  return port_of(listen_tcp(0, "localhost").front());
}

inline ConnectOptions patient(std::chrono::milliseconds wait, std::chrono::milliseconds silence) {
  ConnectOptions options;
  options.rendezvous_timeout = std::chrono::seconds(60);
  options.timeouts = {.wait = wait, .silence = silence};
  return options;
}

// A world of connected processes, in which each rank runs `main`.
inline Processes connected(int world, const std::function<std::string(Transport&)>& main,
                           ConnectOptions options = patient(std::chrono::seconds(60), std::chrono::seconds(60))) {
  const int port = free_port();
  return Processes(world, [=](int rank) { return main(*connect(launch_of(rank, world, port), options)); });
}

inline double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

}  // namespace agoq::comm

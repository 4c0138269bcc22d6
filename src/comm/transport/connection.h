// Frames over a stream socket that never blocks: messages of many channels in turns, and what ranks tell each other
// about themselves. Nothing here locks: every call is made with the transport's mutex held.
#pragma once

#include <array>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/file_descriptor.h"
#include "comm/transport/mailbox.h"

namespace agoq::comm {

enum class FrameKind : uint32_t {
  Data,       // a piece of a message
  Heartbeat,  // the ranks that the sender waits for, int32 each
  Fault,      // why nothing goes on, as text
  Goodbye,    // the sender ends as it should
};

// What stands before every frame, little-endian as all machines that this is built for. A message is cut into frames,
// so that a long one holds up neither other channels nor bad news.
struct FrameHeader {
  FrameKind kind = FrameKind::Data;
  uint32_t channel = 0;
  uint64_t message_bytes = 0;  // of the whole message
  uint64_t bytes = 0;          // that follow
};

struct Notice {
  FrameKind kind = FrameKind::Heartbeat;
  std::string text;
};

// What a connection has written, by channel; headers and notices are framing.
struct SentBytes {
  std::map<uint32_t, uint64_t> payload;
  uint64_t framing = 0;
};

class Connection {
 public:
  Connection(FileDescriptor socket, int peer);
  int socket() const { return socket_.get(); }
  bool open() const { return socket_.valid(); }
  void close(Mailbox& mailbox);  // what is queued counts as sent

  void queue(Mailbox& mailbox, const MessageRef& message, const Send& send);
  void queue(Notice notice);  // before all messages
  bool idle() const { return !frame_ && notices_.empty() && turns_.empty(); }
  // As much as the socket takes now. A peer that does not read any more is noticed by read().
  void write(Mailbox& mailbox, SentBytes& traffic);
  void keep_sending(const Exchange& exchange);  // its bytes are copied
  void cut_short();  // drops all messages but the rest of the frame under way, of which a copy is made

  struct Inflow {
    std::vector<Notice> notices;
    bool any = false;     // something came
    bool broken = false;  // the peer has closed, or does not speak as it should
  };
  // What has come, at most some megabytes. After a fault messages are thrown away.
  Inflow read(Mailbox& mailbox);

 private:
  struct Outgoing {
    MessageRef message;
    const uint8_t* data;
    size_t bytes, sent;
    std::unique_ptr<uint8_t[]> own;
    void keep();  // from a copy from now on
  };
  struct OutFrame {
    FrameHeader header;
    size_t header_left = sizeof(FrameHeader);
    size_t left = 0;
  };
  struct InFrame {
    FrameHeader header;
    size_t left = 0;
    std::string text;  // of a notice
  };

  bool begin_frame();
  const uint8_t* frame_data();
  void end_frame(Mailbox& mailbox);
  bool begin_incoming(Mailbox& mailbox);
  bool parse(Mailbox& mailbox, Inflow& inflow);
  void take(Mailbox& mailbox, const uint8_t* from, size_t bytes);
  ptrdiff_t receive(Mailbox& mailbox);

  FileDescriptor socket_;
  int peer_;

  std::deque<Notice> notices_;
  std::map<uint32_t, std::deque<Outgoing>> outgoing_;
  std::deque<uint32_t> turns_;  // channels with something to send
  std::optional<OutFrame> frame_;

  std::optional<InFrame> incoming_;
  std::map<uint32_t, uint64_t> unfinished_;  // by channel: bytes that the message under way still lacks
  std::vector<uint8_t> buffer_;
  size_t begin_ = 0, end_ = 0;  // of what buffer_ holds
};

}  // namespace agoq::comm

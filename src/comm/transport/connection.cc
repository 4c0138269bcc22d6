#include "comm/transport/connection.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace agoq::comm {
namespace {

constexpr size_t kFrame = size_t{1} << 20;         // what a local socket moves fastest
constexpr size_t kBuffer = size_t{64} << 10;       // many small messages in one call
constexpr size_t kNotice = size_t{64} << 10;       // the longest that is believed
constexpr size_t kTurn = size_t{4} << 20;          // read before other peers have their turn
constexpr size_t kWorthPlacing = size_t{8} << 10;  // received without a detour through the buffer

}  // namespace

Connection::Connection(FileDescriptor socket, int peer) : socket_(std::move(socket)), peer_(peer), buffer_(kBuffer) {
  const int flags = ::fcntl(socket_.get(), F_GETFL);
  const bool set = flags >= 0 && ::fcntl(socket_.get(), F_SETFL, flags | O_NONBLOCK) == 0;
  require(set, "the connection to rank {}: {}", peer, std::strerror(errno));
}

void Connection::close(Mailbox& mailbox) {
  socket_.close();
  for (const auto& [channel, messages] : outgoing_)
    for (const Outgoing& message : messages) mailbox.finished(message.message);
  frame_.reset();
  notices_.clear();
  turns_.clear();
  outgoing_.clear();
}

void Connection::Outgoing::keep() {
  if (own || sent == bytes) return;
  own = std::make_unique_for_overwrite<uint8_t[]>(bytes - sent);
  std::memcpy(own.get(), data + sent, bytes - sent);
  data = own.get() - sent;
}

void Connection::queue(Mailbox& mailbox, const MessageRef& message, const Send& send) {
  if (!open()) return mailbox.finished(message);  // the peer has ended and will not miss it
  auto& channel = outgoing_[message.exchange->channel];
  if (channel.empty()) turns_.push_back(message.exchange->channel);
  channel.push_back({message, static_cast<const uint8_t*>(send.data), send.bytes, 0, nullptr});
}

void Connection::queue(Notice notice) {
  if (open()) notices_.push_back(std::move(notice));
}

bool Connection::begin_frame() {
  if (!notices_.empty()) {
    const Notice& notice = notices_.front();
    frame_ = OutFrame{.header = {notice.kind, 0, notice.text.size(), notice.text.size()}, .left = notice.text.size()};
  } else if (!turns_.empty()) {
    const Outgoing& next = outgoing_[turns_.front()].front();
    const size_t bytes = std::min(kFrame, next.bytes - next.sent);
    frame_ = OutFrame{.header = {FrameKind::Data, turns_.front(), next.bytes, bytes}, .left = bytes};
  }
  return frame_.has_value();
}

const uint8_t* Connection::frame_data() {
  if (frame_->header.kind == FrameKind::Data) {
    const Outgoing& message = outgoing_[frame_->header.channel].front();
    return message.data + message.sent;
  }
  const std::string& text = notices_.front().text;
  return reinterpret_cast<const uint8_t*>(text.data()) + (text.size() - frame_->left);
}

void Connection::end_frame(Mailbox& mailbox) {
  const FrameHeader header = std::exchange(frame_, std::nullopt)->header;
  if (header.kind != FrameKind::Data) return notices_.pop_front();
  auto& channel = outgoing_[header.channel];
  turns_.pop_front();
  if (channel.front().sent == channel.front().bytes) {
    mailbox.finished(channel.front().message);
    channel.pop_front();
  }
  if (!channel.empty()) turns_.push_back(header.channel);
}

void Connection::write(Mailbox& mailbox, SentBytes& traffic) {
  while (open() && (frame_ || begin_frame())) {
    auto* const header = reinterpret_cast<uint8_t*>(&frame_->header) + (sizeof(FrameHeader) - frame_->header_left);
    std::array<iovec, 2> parts = {
        {{header, frame_->header_left}, {const_cast<uint8_t*>(frame_data()), frame_->left}}};  // only read
    msghdr call{};
    call.msg_iov = parts.data();
    call.msg_iovlen = parts.size();
    const ssize_t result = ::sendmsg(socket(), &call, MSG_NOSIGNAL);
    if (result < 0 && errno == EINTR) continue;
    if (result < 0) return;
    const size_t of_header = std::min(static_cast<size_t>(result), frame_->header_left);
    const size_t of_data = static_cast<size_t>(result) - of_header;
    frame_->header_left -= of_header;
    frame_->left -= of_data;
    traffic.framing += of_header;
    if (frame_->header.kind == FrameKind::Data) {
      Outgoing& message = outgoing_[frame_->header.channel].front();
      message.sent += of_data;
      traffic.payload[frame_->header.channel] += of_data;
      if (message.message.exchange) message.message.exchange->moved = Clock::now();
    } else {
      traffic.framing += of_data;
    }
    if (frame_->header_left == 0 && frame_->left == 0) end_frame(mailbox);
  }
}

void Connection::keep_sending(const Exchange& exchange) {
  const auto channel = outgoing_.find(exchange.channel);
  if (channel == outgoing_.end()) return;
  for (Outgoing& message : channel->second)
    if (message.message.exchange.get() == &exchange) {
      message.keep();
      message.message = {};
    }
}

void Connection::cut_short() {
  std::optional<Outgoing> rest;
  if (frame_ && frame_->header.kind == FrameKind::Data) {
    rest = std::move(outgoing_[frame_->header.channel].front());
    rest->bytes = rest->sent + frame_->left;
    rest->message = {};
    rest->keep();
  }
  outgoing_.clear();
  turns_.clear();
  if (!rest) return;
  outgoing_[frame_->header.channel].push_back(std::move(*rest));
  turns_.push_back(frame_->header.channel);
}

// False where the header makes no sense.
bool Connection::begin_incoming(Mailbox& mailbox) {
  FrameHeader header;
  std::memcpy(&header, buffer_.data() + begin_, sizeof header);
  begin_ += sizeof header;
  incoming_ = InFrame{header, header.bytes, {}};
  if (header.kind != FrameKind::Data) return header.kind <= FrameKind::Goodbye && header.bytes <= kNotice;
  auto [at, is_new] = unfinished_.try_emplace(header.channel, header.message_bytes);
  if (header.bytes > at->second) return false;
  at->second -= header.bytes;
  if (at->second == 0) unfinished_.erase(at);
  if (is_new && mailbox.fault().empty()) mailbox.begin(peer_, header.channel, header.message_bytes);
  return true;
}

// Bytes of the frame under way, which lie in the buffer (`from`) or, received in place, where they belong (null).
void Connection::take(Mailbox& mailbox, const uint8_t* from, size_t bytes) {
  incoming_->left -= bytes;
  const FrameHeader& header = incoming_->header;
  if (header.kind != FrameKind::Data) {
    if (from != nullptr) incoming_->text.append(reinterpret_cast<const char*>(from), bytes);
  } else if (mailbox.fault().empty() && bytes > 0) {
    uint8_t* const to = mailbox.buffer(peer_, header.channel);
    if (from != nullptr && to != nullptr) std::memcpy(to, from, bytes);
    mailbox.advance(peer_, header.channel, bytes);
  }
}

bool Connection::parse(Mailbox& mailbox, Inflow& inflow) {
  while (true) {
    if (!incoming_) {
      if (end_ - begin_ < sizeof(FrameHeader)) return true;
      if (!begin_incoming(mailbox)) return false;
    }
    const size_t bytes = std::min(incoming_->left, end_ - begin_);
    take(mailbox, buffer_.data() + begin_, bytes);
    begin_ += bytes;
    if (incoming_->left > 0) return true;
    if (incoming_->header.kind != FrameKind::Data)
      inflow.notices.push_back({incoming_->header.kind, std::move(incoming_->text)});
    incoming_.reset();
  }
}

// One call: into the message's own place as far as its frame goes, the rest into the buffer. Returns what recvmsg does.
ptrdiff_t Connection::receive(Mailbox& mailbox) {
  std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
  end_ -= begin_;
  begin_ = 0;
  std::array<iovec, 2> parts = {{{nullptr, 0}, {buffer_.data() + end_, buffer_.size() - end_}}};
  const bool placed = incoming_ && incoming_->header.kind == FrameKind::Data && incoming_->left >= kWorthPlacing &&
                      mailbox.fault().empty() && mailbox.buffer(peer_, incoming_->header.channel) != nullptr;
  if (placed) parts[0] = {mailbox.buffer(peer_, incoming_->header.channel), incoming_->left};
  msghdr call{};
  call.msg_iov = parts.data();
  call.msg_iovlen = parts.size();
  const ssize_t result = ::recvmsg(socket(), &call, 0);
  if (result <= 0) return result;
  const size_t in_place = std::min(static_cast<size_t>(result), parts[0].iov_len);
  if (placed) take(mailbox, nullptr, in_place);
  end_ += static_cast<size_t>(result) - in_place;
  return result;
}

Connection::Inflow Connection::read(Mailbox& mailbox) {
  Inflow inflow;
  for (size_t total = 0; open() && total < kTurn;) {
    const ptrdiff_t result = receive(mailbox);
    if (result < 0 && errno == EINTR) continue;
    if (result < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
    inflow.broken = result <= 0 || !parse(mailbox, inflow);
    if (inflow.broken) break;
    inflow.any = true;
    total += static_cast<size_t>(result);
  }
  return inflow;
}

}  // namespace agoq::comm

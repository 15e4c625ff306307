package nbd

import "encoding/binary"

// Magic numbers of the protocol.
const (
	magicServer     uint64 = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption     uint64 = 0x49484156454f5054 // "IHAVEOPT"
	magicOldstyle   uint64 = 0x0000420281861253
	magicOptReply   uint64 = 0x0003e889045565a9
	magicRequest    uint32 = 0x25609513
	magicSimple     uint32 = 0x67446698
	magicStructured uint32 = 0x668e33ef
)

// Handshake flags, the same bits on both sides.
const (
	flagFixedNewstyle uint16 = 1 << 0
	flagNoZeroes      uint16 = 1 << 1
)

// option is the number of an option of the handshake.
type option uint32

const (
	optExportName      option = 1
	optAbort           option = 2
	optList            option = 3
	optStartTLS        option = 5
	optInfo            option = 6
	optGo              option = 7
	optStructuredReply option = 8
	optListMeta        option = 9
	optSetMeta         option = 10
)

// Types of option replies.
const (
	repAck         uint32 = 1
	repServer      uint32 = 2
	repInfo        uint32 = 3
	repMetaContext uint32 = 4

	repErr        uint32 = 1 << 31
	repErrUnsup   uint32 = repErr + 1
	repErrPolicy  uint32 = repErr + 2
	repErrInvalid uint32 = repErr + 3
	repErrTLSReqd uint32 = repErr + 5
	repErrUnknown uint32 = repErr + 6
	repErrTooBig  uint32 = repErr + 9
)

// Types of information about an export.
const (
	infoExport      uint16 = 0
	infoName        uint16 = 1
	infoDescription uint16 = 2
	infoBlockSize   uint16 = 3
)

// Flags are the transmission flags of an export: what it can do.
type Flags uint16

// The transmission flags this package knows.
const (
	FlagHasFlags        Flags = 1 << 0
	FlagReadOnly        Flags = 1 << 1
	FlagSendFlush       Flags = 1 << 2
	FlagSendFUA         Flags = 1 << 3
	FlagRotational      Flags = 1 << 4
	FlagSendTrim        Flags = 1 << 5
	FlagSendWriteZeroes Flags = 1 << 6
	FlagSendDF          Flags = 1 << 7
	FlagCanMultiConn    Flags = 1 << 8
	FlagSendResize      Flags = 1 << 9
	FlagSendCache       Flags = 1 << 10
	FlagSendFastZero    Flags = 1 << 11
)

// command is the type of a request.
type command uint16

const (
	cmdRead        command = 0
	cmdWrite       command = 1
	cmdDisc        command = 2
	cmdFlush       command = 3
	cmdTrim        command = 4
	cmdCache       command = 5
	cmdWriteZeroes command = 6
	cmdBlockStatus command = 7
)

// String returns the command's name for messages.
func (c command) String() string {
	switch c {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdDisc:
		return "disconnect"
	case cmdFlush:
		return "flush"
	case cmdTrim:
		return "trim"
	case cmdCache:
		return "cache"
	case cmdWriteZeroes:
		return "write zeroes"
	case cmdBlockStatus:
		return "block status"
	}
	return "unknown command"
}

// Flags of a request.
const (
	cmdFlagFUA      uint16 = 1 << 0
	cmdFlagNoHole   uint16 = 1 << 1
	cmdFlagDF       uint16 = 1 << 2
	cmdFlagReqOne   uint16 = 1 << 3
	cmdFlagFastZero uint16 = 1 << 4
)

// Chunks of a structured reply.
const (
	chunkFlagDone uint16 = 1 << 0

	chunkNone        uint16 = 0
	chunkOffsetData  uint16 = 1
	chunkOffsetHole  uint16 = 2
	chunkBlockStatus uint16 = 5
	chunkErrorBit    uint16 = 1 << 15
	chunkError       uint16 = chunkErrorBit + 1
	chunkErrorOffset uint16 = chunkErrorBit + 2
)

// States of an extent in the context base:allocation.
const (
	stateHole uint32 = 1 << 0
	stateZero uint32 = 1 << 1

	contextAllocation          = "base:allocation"
	allocationID        uint32 = 1
	namespaceAllocation        = "base:"
)

// Sizes on the wire, in bytes.
const (
	requestSize          = 28
	simpleReplySize      = 16
	chunkHeaderSize      = 20
	optionHeaderSize     = 16
	optReplyHeaderSize   = 20
	exportNameZeroes     = 124
	maxNameLength        = 4096 // of names, descriptions and contexts, by the protocol
	defaultMaxRequest    = 32 << 20
	defaultPreferred     = 4096
	maxErrorMessage      = 512
	maxStatusDescriptors = 8192
)

// request is the header of a request.
type request struct {
	flags  uint16
	cmd    command
	handle uint64
	offset uint64
	length uint32
}

// decodeRequest reads a header of requestSize bytes; ok is false if the magic
// number is wrong.
func decodeRequest(b []byte) (r request, ok bool) {
	_ = b[requestSize-1]
	r.flags = binary.BigEndian.Uint16(b[4:])
	r.cmd = command(binary.BigEndian.Uint16(b[6:]))
	r.handle = binary.BigEndian.Uint64(b[8:])
	r.offset = binary.BigEndian.Uint64(b[16:])
	r.length = binary.BigEndian.Uint32(b[24:])
	return r, binary.BigEndian.Uint32(b) == magicRequest
}

// append adds the header to b.
func (r request) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicRequest)
	b = binary.BigEndian.AppendUint16(b, r.flags)
	b = binary.BigEndian.AppendUint16(b, uint16(r.cmd))
	b = binary.BigEndian.AppendUint64(b, r.handle)
	b = binary.BigEndian.AppendUint64(b, r.offset)
	return binary.BigEndian.AppendUint32(b, r.length)
}

// appendSimple adds the header of a simple reply to b.
func appendSimple(b []byte, code Errno, handle uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSimple)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	return binary.BigEndian.AppendUint64(b, handle)
}

// chunk is the header of a chunk of a structured reply.
type chunk struct {
	flags  uint16
	kind   uint16
	handle uint64
	length uint32
}

// append adds the header to b.
func (c chunk) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, magicStructured)
	b = binary.BigEndian.AppendUint16(b, c.flags)
	b = binary.BigEndian.AppendUint16(b, c.kind)
	b = binary.BigEndian.AppendUint64(b, c.handle)
	return binary.BigEndian.AppendUint32(b, c.length)
}

// appendErrorChunk adds a final chunk with an error and its message to b.
func appendErrorChunk(b []byte, code Errno, message string, handle uint64) []byte {
	if len(message) > maxErrorMessage {
		message = message[:maxErrorMessage]
	}
	b = chunk{chunkFlagDone, chunkError, handle, uint32(6 + len(message))}.append(b)
	b = binary.BigEndian.AppendUint32(b, uint32(code))
	b = binary.BigEndian.AppendUint16(b, uint16(len(message)))
	return append(b, message...)
}

// appendOptReply adds a reply to an option to b.
func appendOptReply(b []byte, opt option, kind uint32, payload []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOptReply)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, kind)
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// appendOption adds an option to b.
func appendOption(b []byte, opt option, payload []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, magicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(opt))
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// appendString adds a string with its 32-bit length to b.
func appendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// cutString takes a string with its 32-bit length from the front of b.
func cutString(b []byte) (s string, rest []byte, ok bool) {
	if len(b) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) {
		return "", nil, false
	}
	return string(b[:n]), b[n:], true
}

package segment

// DecodeIndex decodes a plain index for fuzzing.
func DecodeIndex(b []byte, h *Header) (*Index, error) { return decodeIndex(b, h) }

// EncodeIndex encodes what DecodeIndex gave.
func EncodeIndex(x *Index, h *Header) []byte { return x.encode(h) }

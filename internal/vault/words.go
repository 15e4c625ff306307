package vault

import (
	"fmt"
	"strings"

	"filippo.io/age"
	"github.com/cosmos/go-bip39"
	"github.com/decred/dcrd/bech32"
)

// keyPrefix is the human-readable part of an age identity.
const keyPrefix = "AGE-SECRET-KEY-"

// keyWords is how many words a key is written in.
const keyWords = 24

// Words returns the key as 24 English words (BIP 39, 256 bits and a checksum), which
// a person can write down and read out. ParseKey takes them back.
func (k Key) Words() (string, error) {
	_, secret, err := bech32.DecodeToBase256(k.String())
	if err != nil {
		return "", err
	}
	return bip39.NewMnemonic(secret)
}

// parseWords parses what Words returns, in any case and with any space between.
func parseWords(words []string) (Key, error) {
	for i, w := range words {
		words[i] = strings.ToLower(w)
	}
	b, err := bip39.MnemonicToByteArray(strings.Join(words, " "))
	if err != nil {
		return Key{}, fmt.Errorf("recovery key: a word is wrong or not in its place: %w", err)
	}
	text, err := bech32.EncodeFromBase256(strings.ToLower(keyPrefix), b[:len(b)-1]) // the last byte is the checksum
	if err != nil {
		return Key{}, err
	}
	id, err := age.ParseX25519Identity(strings.ToUpper(text))
	return Key{id}, err
}

package api

import "time"

// Vault is the state of the vault.
type Vault struct {
	ID            string        `json:"id" doc:"The vault's id"`
	Location      string        `json:"location" doc:"Where its objects are, without secrets"`
	FormatVersion int           `json:"format_version" doc:"The version of its format"`
	CreatedAt     time.Time     `json:"created_at" doc:"When it was made"`
	Bytes         int64         `json:"bytes" doc:"What its objects take"`
	FreeBytes     *int64        `json:"free_bytes,omitempty" doc:"What is left in the store; missing if that has no bound"`
	Streams       []VaultStream `json:"streams" nullable:"false" doc:"Its streams"`
	LastVerify    *VerifyReport `json:"last_verify,omitempty" doc:"What the last verification found"`
	Copy          *VaultCopy    `json:"copy,omitempty" doc:"Its copy in another store; missing if the server keeps none"`
	Health        Health        `json:"health" doc:"How it fares"`
}

// VaultCopy is the state of the copy of a vault in another store.
type VaultCopy struct {
	Location string    `json:"location" doc:"Where its objects are, without secrets"`
	AsOf     time.Time `json:"as_of,omitzero" doc:"It has all that the vault had then; missing until it was whole for the first time since the server's start"`
	Objects  int64     `json:"objects" doc:"How many objects it has, when it was last whole"`
	Bytes    int64     `json:"bytes" doc:"What they take"`
	Done     int64     `json:"done,omitempty" doc:"Bytes copied by the pass that runs"`
	Total    int64     `json:"total,omitempty" doc:"Bytes that the pass that runs has to copy; missing if none runs"`
	Damaged  []string  `json:"damaged,omitempty" nullable:"false" doc:"Objects that were not copied, because they are damaged in the vault"`
	Problem  string    `json:"problem,omitempty" doc:"Why the last pass failed"`
}

// VaultStream is a stream in a vault.
type VaultStream struct {
	ID        string    `json:"id" doc:"The stream's id"`
	Name      string    `json:"name" doc:"Its name when it was made"`
	Item      string    `json:"item,omitempty" doc:"The item that it belongs to"`
	Timelines int       `json:"timelines" doc:"How many timelines it has"`
	Segments  int64     `json:"segments" doc:"How many segments it has"`
	Bytes     int64     `json:"bytes" doc:"What its segments take"`
	Oldest    time.Time `json:"oldest,omitzero" doc:"The oldest moment that can be recovered"`
	Newest    time.Time `json:"newest,omitzero" doc:"The newest moment that can be recovered"`
}

// VerifyVault asks for a vault to be read as a whole and checked.
type VerifyVault struct {
	Stream string `json:"stream,omitempty" pattern:"^([0-9a-f]{32})?$" doc:"Only this stream; all if empty"`
}

// VerifyReport is what a verification found.
type VerifyReport struct {
	FinishedAt time.Time       `json:"finished_at" doc:"When it ended"`
	Segments   int64           `json:"segments" doc:"How many segments were read"`
	Bytes      int64           `json:"bytes" doc:"How many bytes were read"`
	Damaged    []DamagedObject `json:"damaged" nullable:"false" doc:"What is damaged"`
	Healed     []string        `json:"healed,omitempty" nullable:"false" doc:"Objects that were damaged, and were put back from the copy"`
}

// DamagedObject is an object of the vault that is not as it was written.
type DamagedObject struct {
	Object   string   `json:"object" doc:"Its name in the store"`
	Detail   string   `json:"detail" doc:"What is wrong with it"`
	Timeline uint32   `json:"timeline,omitempty" doc:"The timeline that it is of"`
	First    string   `json:"first,omitempty" doc:"The first position that is touched"`
	Last     string   `json:"last,omitempty" doc:"The last position that is touched"`
	Points   []string `json:"points,omitempty" nullable:"false" doc:"Recovery points that are touched"`
}

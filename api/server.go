package api

import "time"

// ServerHealth is how the server fares. Without a token only the status is
// told.
type ServerHealth struct {
	Status     string            `json:"status" enum:"ok,degraded,starting" doc:"ok if it can do its work"`
	Components []ComponentHealth `json:"components,omitempty" nullable:"false" doc:"Its parts"`
}

// ComponentHealth is how a part of the server fares.
type ComponentHealth struct {
	Name   string `json:"name" doc:"The part, like store, vault or gateway"`
	Status string `json:"status" enum:"ok,degraded,down" doc:"How it fares"`
	Detail string `json:"detail,omitempty" doc:"Why"`
	Advice string `json:"advice,omitempty" doc:"What to do"`
}

// ServerVersion says what the server is.
type ServerVersion struct {
	Version   string    `json:"version" doc:"Of the program"`
	Commit    string    `json:"commit,omitempty" doc:"What it was built from"`
	API       int       `json:"api" doc:"Of this interface"`
	GoVersion string    `json:"go_version,omitempty" doc:"What it was built with"`
	Time      time.Time `json:"time" doc:"The server's clock"`
}

// Event is something that happened. What it names may have changed again by
// the time it is read: ask for the thing itself.
type Event struct {
	ID       uint64    `json:"id" doc:"Grows with each event"`
	Time     time.Time `json:"time" doc:"When"`
	Type     string    `json:"type" doc:"item_changed, item_removed, job_changed, site_changed, health_changed, vault_changed, or reset"`
	Severity string    `json:"severity" enum:"info,warning,critical" doc:"How bad it is"`
	Message  string    `json:"message,omitempty" doc:"What happened, in words"`
	Item     string    `json:"item,omitempty" doc:"The item concerned"`
	Job      string    `json:"job,omitempty" doc:"The job concerned"`
	Site     string    `json:"site,omitempty" doc:"The site concerned"`
}

// The types of events.
const (
	EventItemChanged   = "item_changed"
	EventItemRemoved   = "item_removed"
	EventJobChanged    = "job_changed"
	EventSiteChanged   = "site_changed"
	EventHealthChanged = "health_changed"
	EventVaultChanged  = "vault_changed"
	EventPlanChanged   = "plan_changed"
	// EventReset says that events between the last one read and the next are
	// no longer kept: read everything anew.
	EventReset = "reset"
)

// The roles of tokens. A role may do what the roles after it may.
const (
	RoleAdmin    = "admin"    // everything, tokens and sites included
	RoleOperator = "operator" // protect, fail over, cancel
	RoleViewer   = "viewer"   // look, change nothing
)

// Token is what the server remembers of a token; never the token itself.
type Token struct {
	ID        string    `json:"id" doc:"The token's id"`
	Name      string    `json:"name" doc:"What it was made for"`
	Role      string    `json:"role" enum:"admin,operator,viewer" doc:"What it may do"`
	CreatedAt time.Time `json:"created_at" doc:"When it was made"`
	ExpiresAt time.Time `json:"expires_at,omitzero" doc:"When it ceases to be valid; missing if never"`
}

// CreateToken asks for a new token.
type CreateToken struct {
	Name       string `json:"name" minLength:"1" maxLength:"64" doc:"What it is for"`
	Role       string `json:"role" enum:"admin,operator,viewer" doc:"What it may do"`
	TTLSeconds int64  `json:"ttl_seconds,omitempty" minimum:"0" maximum:"315360000" doc:"How long it is valid; 0 for ever"`
}

// CreatedToken is a new token, with its secret. The server does not keep the
// secret: this is the only time that it is shown.
type CreatedToken struct {
	Token  Token  `json:"token" doc:"What the server remembers"`
	Secret string `json:"secret" doc:"The token; it cannot be shown again"`
}

// TokenList is all tokens.
type TokenList struct {
	Tokens []Token `json:"tokens" nullable:"false" doc:"Sorted by name"`
}

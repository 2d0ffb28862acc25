/*
 * The secure sum of protocols/secagg as a state machine for the Spin checker.
 *
 * N clients, the last C of them colluders, threshold T. Server and colluders are
 * one adversary: it chooses every byte that an honest client receives, knows all
 * that the colluders know, and signs in their name. Cryptography is perfect: a
 * box opens at its addressee only, nobody signs for another, t shares give a
 * secret and fewer give nothing. README.md beside this file says what that
 * leaves out, how to run it, and what came out.
 *
 * Each rule of the protocol is named where it is enforced. Its own macro switches
 * it off (a mutation), to show that the checker then finds the attack.
 */

#ifndef N
#define N 4
#endif
#ifndef T
#define T 3
#endif
#ifndef C
#define C 1
#endif

/* SA-002: the threshold is safe and can be reached. */
#if 2 * T <= N + C && !defined(WEAK_THRESHOLD)
#error "2 t > n + |C| does not hold"
#endif
#if T < 2 || T > N || N > 6
#error "this model is for 2 <= t <= n <= 6"
#endif
#if defined(FAIR_SERVER) && C > 0
#error "a fair server is checked without colluders"
#endif

/* SA-105, SA-206, SA-403: max(t, 3, |C| + 2) members in every cohort. */
#if T >= 3 && T >= C + 2
#define MIN_COHORT T
#elif C >= 1
#define MIN_COHORT (C + 2)
#else
#define MIN_COHORT 3
#endif

/* A set of clients is a byte, one bit for each. */
#define BIT(i) (1 << (i))
#define HAS(set, i) (((set) >> (i)) & 1)
#define SIZE(set) (HAS(set, 0) + HAS(set, 1) + HAS(set, 2) + HAS(set, 3) \
                   + HAS(set, 4) + HAS(set, 5))
#define ALL (BIT(N) - 1)
#define HONEST (BIT(N - C) - 1)
#define COLLUDERS (ALL & ~HONEST)

/* How far an honest client is: the state types of client_states.py. */
#define ADVERTISED 1
#define KEYS_SHARED 2
#define INPUT_MASKED 3
#define CONFIRMED 4
#define FINISHED 5
byte stage[N];

/* What an honest client holds. */
bit model[N];     /* the model it was shown; part of its session id (SA-007) */
byte own_keys[N]; /* its directory (U1): members under the keys they advertised */
byte new_keys[N]; /* its directory (U1): members under other keys, the adversary's */
byte held[N];     /* whose boxes opened: it holds shares of their b and R */
byte cohort[N];   /* whom it masked with (U2), itself included */
byte list[N];     /* the survivors (U3) that it signed; 0 before that */

/* What the adversary holds, for each honest dealer: the holders of its shares. */
byte b_shares[N];
byte r_shares[N];
#define B_KNOWN(i) (SIZE(b_shares[i]) >= T)
#define R_KNOWN(i) (SIZE(r_shares[i]) >= T) /* and so all pairwise masks of i */

#define SAME_DIRECTORY(i, k) \
  (own_keys[i] == own_keys[k] && new_keys[i] == new_keys[k])
/* SA-007, SA-106: equal contexts, so equal salts, headers and signed texts. */
#ifdef SESSION_WITHOUT_MODEL
#define SAME_SESSION(i, k) true
#else
#define SAME_SESSION(i, k) (model[i] == model[k])
#endif
#ifdef CONTEXT_WITHOUT_DIRECTORY
#define SAME_CONTEXT(i, k) SAME_SESSION(i, k)
#else
#define SAME_CONTEXT(i, k) (SAME_SESSION(i, k) && SAME_DIRECTORY(i, k))
#endif

#ifdef CONFIRM_TWICE
byte forgotten[N]; /* a list signed before a backup brought the client back */
#define SIGNED(k, names) (list[k] == (names) || forgotten[k] == (names))
#else
#define SIGNED(k, names) (list[k] == (names))
#endif

/* Scratch: written in the d_step that reads it, so it is no part of the state. */
hidden byte j, k, pass, pool, part, count, ok;
hidden byte hiding[N];
hidden byte secrecy, agreement, minimum, whole, nothing, opens;


/* ------------------------------------------------------------------ goals */

/* secrecy: never t shares of b and t shares of R of one honest client. */
inline goal_secrecy() {
  for (j : 0 .. N - C - 1) {
    secrecy = !(B_KNOWN(j) && R_KNOWN(j));
    assert(secrecy)
  }
}

/* agreement: who reveals used one session, one directory, one survivor list. */
inline goal_agreement() {
  for (j : 0 .. N - C - 1) {
    for (k : 0 .. N - C - 1) {
      agreement = stage[j] != FINISHED || stage[k] != FINISHED ||
        (model[j] == model[k] && SAME_DIRECTORY(j, k) && list[j] == list[k]);
      assert(agreement)
    }
  }
}

/* What can be opened. A combination of masked inputs tells something if no mask
 * is left in it: b of each is known, and each unknown pairwise mask stands in it
 * with both its ends, so both have the same factor. `pool` becomes the inputs
 * that can have a factor at all, `hiding[j]` those that j's masks tie to it. */
inline find_openable() {
  pool = 0;
  for (j : 0 .. N - C - 1) {
    hiding[j] = 0;
    if
    :: stage[j] >= INPUT_MASKED && B_KNOWN(j) -> pool = pool | BIT(j)
    :: else
    fi;
    for (k : 0 .. N - C - 1) {
      if
      :: j != k && HAS(cohort[j] & own_keys[j], k) && !R_KNOWN(j) && !R_KNOWN(k)
        -> hiding[j] = hiding[j] | BIT(k)
      :: else
      fi
    }
  }
  for (pass : 1 .. N - C) {
    for (j : 0 .. N - C - 1) {
      for (k : 0 .. N - C - 1) {
        if
        :: HAS(hiding[j], k) &&
           !(HAS(pool, k) && HAS(hiding[k], j) && SAME_CONTEXT(j, k))
          -> pool = pool & ~BIT(j)
        :: else
        fi
      }
    }
  }
}

/* minimum: each opened sum has at least max(t, 3, |C| + 2) - |C| honest inputs.
 * whole: it is of all honest clients of a list that an honest client revealed for.
 * An opened sum is one part of the pool that unknown masks hold together. */
inline goal_sums() {
  find_openable();
  for (pass : 0 .. N - C - 1) {
    part = pool & BIT(pass);
    for (count : 1 .. N - C) {
      for (j : 0 .. N - C - 1) {
        if
        :: HAS(part, j) -> part = part | hiding[j]
        :: else
        fi
      }
    }
    minimum = (part == 0 || SIZE(part) >= MIN_COHORT - C);
    assert(minimum);
#ifndef ONLY_MINIMUM
    whole = (part == 0);
    for (j : 0 .. N - C - 1) {
      whole = whole || (stage[j] == FINISHED && part == (list[j] & HONEST))
    }
    assert(whole);
#endif
#ifdef NOTHING_OPENS
    /* No goal: its counterexample shows that sums do get opened. */
    nothing = (part == 0);
    assert(nothing)
#endif
  }
}

/* After each step that teaches the adversary something. */
inline check_goals() {
#ifndef ONLY_MINIMUM
  goal_secrecy();
  goal_agreement();
#endif
  goal_sums()
}


/* ---------------------------------------------------------- the server's part */

#ifdef FAIR_SERVER
/* Follows the protocol; clients vanish whenever they are not scheduled again.
 * opens: if t clients reveal, no mask is left that their shares do not remove. */
byte closed;   /* phases that are over */
byte answered; /* who answered the last of them */
byte dealers, survivors;

inline goal_opens() {
  for (j : 0 .. N - 1) {
    opens = !HAS(survivors, j) || B_KNOWN(j);
    assert(opens);
    for (k : 0 .. N - 1) {
      opens = !HAS(survivors, j) || !HAS(cohort[j], k) || R_KNOWN(k) ||
        (HAS(survivors, k) && HAS(cohort[k], j));
      assert(opens)
    }
  }
}

active proctype Server() {
  byte phase, now;
  for (phase : 0 .. 4) {
    atomic {
      d_step {
        now = 0;
        for (j : 0 .. N - 1) {
          if
          :: stage[j] == phase + 1 && (phase == 0 || HAS(answered, j))
            -> now = now | BIT(j)
          :: else
          fi
        }
      }
      /* SA-016: enough are left; otherwise the session ends here. */
      (SIZE(now) >= (phase < 3 -> MIN_COHORT : T));
      d_step {
        answered = now;
        closed = phase + 1;
        now = 0;
        if
        :: phase == 1 -> dealers = answered
        :: phase == 2 -> survivors = answered
        :: phase == 4 -> goal_opens()
        :: else
        fi
      }
    }
  }
}
#define FIRST 1 /* number of the first client's process */
#else
#define FIRST 0
#endif

/* What the server sends: a fair one what the phase gave, to those that answered;
 * the adversary any set whatever, so only the client's checks can stop it. */
#ifdef FAIR_SERVER
#define WAIT_FOR(phase) (closed == phase && (phase == 0 || HAS(answered, me)))
#define ROSTER claim = answered
#define DELIVERY claim = dealers
#define SURVIVORS claim = survivors
#else
#define WAIT_FOR(phase) skip
#define ANY(set) select(set : 0 .. ALL); skip
#ifdef LIES_IN_PHASE_3_ONLY /* fewer states, for more clients */
#define ROSTER claim = ALL
#define DELIVERY claim = ALL
#else
#define ROSTER ANY(claim); ANY(other)
#define DELIVERY ANY(claim)
#endif
#define SURVIVORS ANY(claim)
#endif

inline any_model() {
#if defined(FAIR_SERVER) || defined(LIES_IN_PHASE_3_ONLY)
  skip
#else
  if
  :: true
  :: me > 0 -> model[me] = 1 /* client 0 is shown model 0: only a name */
  fi
#endif
}


/* ----------------------------------------------------------- the client's checks */

/* share_keys: is a roster taken that lists `claim` under the keys they advertised
 * and `other` under keys of the adversary? */
inline check_roster() {
  ok = !(claim & other);
  for (j : 0 .. N - C - 1) {
    /* SA-014, SA-011: an honest client signed one entry, for its own session. */
    if
    :: HAS(claim, j) && !(stage[j] >= ADVERTISED && SAME_SESSION(me, j))
      -> ok = false
    :: else
    fi;
#ifndef NO_PINNED_KEYS
    /* SA-014: nobody else signs under its pinned identity. */
    if
    :: HAS(other, j) -> ok = false
    :: else
    fi
#endif
  }
  /* SA-104: our own entry, exactly as we sent it. SA-105: enough clients. */
  ok = ok && HAS(claim, me) && SIZE(claim | other) >= MIN_COHORT
}

/* mask_input: whose boxes, among those of `claim`, open? SA-202, SA-204, SA-205. */
inline open_boxes() {
  part = 0;
  for (j : 0 .. N - 1) {
    if
    :: j == me || !HAS(claim & (own_keys[me] | new_keys[me]), j)
    :: else ->
      if
      :: HAS(COLLUDERS, j) || HAS(new_keys[me], j) -> part = part | BIT(j)
      :: else ->
        if
        :: stage[j] >= KEYS_SHARED && SAME_CONTEXT(me, j) && HAS(own_keys[j], me)
          -> part = part | BIT(j)
        :: else
        fi
      fi
    fi
  }
}

/* mask_input: is the cohort large enough? */
inline check_cohort() {
#ifdef MASK_WITH_U1
  pool = own_keys[me] | new_keys[me];
#else
  /* SA-205: U2, ourselves and those whose boxes opened. */
  pool = part | BIT(me);
#endif
  ok = true;
#ifndef NO_COHORT_FLOOR
  /* SA-206: with ourselves, enough of them. */
  ok = SIZE(pool) >= MIN_COHORT
#endif
}

/* confirm_survivors: may the list `claim` be signed? */
inline check_survivors() {
  ok = claim != 0;
#ifndef WITHOUT_OURSELVES
  /* SA-401: we are in it. */
  ok = ok && HAS(claim, me);
#endif
#ifndef FOREIGN_SURVIVORS
  /* SA-402: only those we masked with. */
  ok = ok && !(claim & ~cohort[me]);
#endif
#ifndef SHORT_LIST
  /* SA-403: enough inputs. */
  ok = ok && SIZE(claim) >= MIN_COHORT
#endif
}

/* unmask: are there t confirmations of our own list? SA-404, SA-501. */
inline check_confirmations() {
#ifdef NO_CONFIRM
  ok = true
#else
  count = SIZE(list[me] & COLLUDERS);
  for (j : 0 .. N - C - 1) {
    if
    :: HAS(list[me], j) && SIGNED(j, list[me]) && SAME_CONTEXT(me, j)
      -> count++
    :: else
    fi
  }
  ok = count >= T
#endif
}

/* unmask: what the reveals teach the adversary. */
inline reveal() {
  b_shares[me] = b_shares[me] | BIT(me);
#ifdef OWN_RECOVERY_SHARE
  /* SA-503: nobody reveals a share of its own R. */
  r_shares[me] = r_shares[me] | BIT(me);
#endif
  for (j : 0 .. N - C - 1) {
    if
    :: HAS(held[me] & own_keys[me], j) ->
#ifdef BOTH_SHARES
      b_shares[j] = b_shares[j] | BIT(me);
      r_shares[j] = r_shares[j] | BIT(me)
#else
      /* SA-502: b of a survivor, R of a dropout; the list decides. */
      if
      :: HAS(list[me], j) -> b_shares[j] = b_shares[j] | BIT(me)
      :: else -> r_shares[j] = r_shares[j] | BIT(me)
      fi
#endif
    :: else
    fi
  }
}


/* ------------------------------------------------------------ an honest client */

/* The phases of client.py. A message that a check refuses leaves the state as it was: the
 * client waits for another one. Who is never scheduled again has vanished. */
active [N - C] proctype Client() {
  byte me = _pid - FIRST;
  byte claim, other;

  atomic { /* phase 0: advertise keys */
    WAIT_FOR(0);
    any_model();
    stage[me] = ADVERTISED;
    printf("client %d is shown model %d\n", me, model[me])
  }

share_keys:
  atomic {
    WAIT_FOR(1);
    ROSTER;
    d_step {
      check_roster();
      if
      :: ok ->
        own_keys[me] = claim;
        new_keys[me] = other;
        /* SA-201: a share of each secret for everybody. The boxes for colluders,
         * and those sealed to keys of the adversary, are read at once. */
        b_shares[me] = ((claim | other) & COLLUDERS) | other;
        r_shares[me] = b_shares[me];
        stage[me] = KEYS_SHARED;
        printf("client %d deals shares to %x\n", me, claim | other);
        check_goals()
      :: else
      fi;
      claim = 0;
      other = 0
    };
    if
    :: stage[me] < KEYS_SHARED -> goto share_keys
    :: else
    fi
  }

mask_input:
  atomic {
    WAIT_FOR(2);
    DELIVERY;
    d_step {
      open_boxes();
      check_cohort();
      if
      :: ok ->
        held[me] = part;
        cohort[me] = pool;
        stage[me] = INPUT_MASKED;
        printf("client %d masks its input with %x\n", me, cohort[me]);
        check_goals()
      :: else
      fi;
      claim = 0
    };
    if
    :: stage[me] < INPUT_MASKED -> goto mask_input
    :: else
    fi
  }

confirm_survivors:
  atomic {
    WAIT_FOR(3);
    SURVIVORS;
    d_step {
      check_survivors();
      if
      :: ok ->
        list[me] = claim;
        stage[me] = CONFIRMED;
        printf("client %d signs the list %x\n", me, list[me])
      :: else
      fi;
      claim = 0
    };
    if
    :: stage[me] < CONFIRMED -> goto confirm_survivors
    :: else
    fi
  }

unmask:
  atomic {
    WAIT_FOR(4);
    d_step {
      check_confirmations();
      if
      :: ok ->
        reveal();
        stage[me] = FINISHED;
        printf("client %d reveals for the list %x\n", me, list[me]);
        check_goals()
      :: else
      fi
    };
    if
    :: stage[me] < FINISHED -> goto unmask
    :: else
    fi
  }

#ifdef CONFIRM_TWICE
  /* SA-006: a finished state is used up. Here a backup brings it back, once. */
  atomic {
    forgotten[me] == 0;
    forgotten[me] = list[me];
    list[me] = 0;
    stage[me] = INPUT_MASKED;
    printf("client %d is restored to the end of phase 2\n", me);
    goto confirm_survivors
  }
#endif
}

(() => {
  "use strict";
  const everyMs = 5000;
  let running = true;

  const copyState = (from, to) => {
    for (const each of from.querySelectorAll("details[id]")) {
      const twin = to.getElementById(each.id);
      if (twin) twin.open = each.open;
    }
  };

  const show = (next) => {
    copyState(document, next);
    const focused = document.activeElement && document.activeElement.id;
    document.title = next.title;
    document.querySelector("link[rel=icon]").href = next.querySelector("link[rel=icon]").href;
    document.querySelector("main").replaceWith(next.querySelector("main"));
    const again = focused && document.getElementById(focused);
    if (again) again.focus({preventScroll: true});
  };

  const say = (text) => { document.getElementById("lost").textContent = text; };

  const refresh = async () => {
    // A page that nobody sees asks for nothing, and a selection is not taken away.
    if (running && !document.hidden && getSelection().isCollapsed) {
      try {
        const answer = await fetch(location.pathname + location.search,
          {headers: {Accept: "text/html"}, cache: "no-store"});
        if (!answer.ok) throw new Error(`it answers ${answer.status}`);
        const text = await answer.text();
        if (running) show(new DOMParser().parseFromString(text, "text/html"));
        say("");
      } catch (error) {
        say("The router cannot be reached. What is below is no longer current.");
      }
    }
    setTimeout(refresh, everyMs);
  };

  const button = document.getElementById("pause");
  button.hidden = false;
  button.addEventListener("click", () => {
    running = !running;
    button.textContent = running ? "Pause refreshing" : "Refresh every 5 s";
  });
  setTimeout(refresh, everyMs);
})();
